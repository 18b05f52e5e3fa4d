package isf

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"strings"
	"testing"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestFindBanner(t *testing.T) {
	p := profile(t, builder())
	want := p.Meta().Banner
	var plain, xz bytes.Buffer
	if err := p.WriteJSON(&plain); err != nil {
		t.Fatal(err)
	}
	if err := p.WriteJSONXZ(&xz); err != nil {
		t.Fatal(err)
	}
	text := plain.String()
	const size = 256 << 10
	after := func(n int) string { // so many bytes before the name
		return strings.Repeat(" ", n-strings.Index(text, `"linux_banner"`)) + text
	}
	for name, c := range map[string]struct{ in, want string }{
		"plain":              {text, want},
		"xz":                 {xz.String(), want},
		"gzip":               {string(gzipped(t, plain.Bytes())), want},
		"at the end":         {after(3*size - 40), want},
		"over two reads":     {after(size - 5), want},
		"behind two reads":   {after(2*size - 20), want},
		"a struct before it": {`{"linux_banner": {"kind": "struct"}, "linux_banner" : 1,` + text, want},
		"none":               {strings.ReplaceAll(text, "linux_banner", "linux_bonner"), ""},
		"no constant":        {strings.ReplaceAll(text, "constant_data", "constant_dota"), ""},
		"no base64":          {strings.ReplaceAll(text, `"constant_data":"`, `"constant_data":"?`), ""},
		"nothing":            {"", ""},
	} {
		if got, err := FindBanner(strings.NewReader(c.in)); got != c.want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, packed := range []string{string(gzipped(t, []byte(after(3*size)))), "BZh9" + text, xz.String()} {
		if got, err := FindBanner(strings.NewReader(packed[:len(packed)/2])); err == nil {
			t.Errorf("half of one has %q", got)
		}
	}
}

// bzipped is an ISF file with a banner: Go has no packer of that kind.
const bzipped = "QlpoOTFBWSZTWZMt514AADkfgBAFcRIgrAVAv7efaiAAaERqZMQyDRoB6jQaCp6mamTCNAAAZNqKi+MRFElHMdjafmucw+dZjLsB5Q4hJfRTZACCFKQKRySQ7miqXVKhg6UBKPLWPodUoMm7ETEyehbGTgY4igOMSHyaCwMH4u5IpwoSEmW868A="

func TestBzip2(t *testing.T) {
	b, err := base64.StdEncoding.DecodeString(bzipped)
	if err != nil {
		t.Fatal(err)
	}
	const want = "Linux version 1.2"
	if p, err := Read(b); err != nil || p.Meta().Banner != want {
		t.Errorf("%v, %v", p, err)
	}
	if got, err := FindBanner(bytes.NewReader(b)); err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCheck(t *testing.T) {
	p := profile(t, builder())
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	b := builder()
	b.Meta.Banner = ""
	if err := profile(t, b).Check(); err == nil || !strings.Contains(err.Error(), "banner") {
		t.Errorf("%v", err)
	}
	var data bytes.Buffer
	if err := p.WriteCompact(&data); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string][2]string{
		"a type":   {`"kind":"struct"`, `"kind":0struct"`},
		"a symbol": {"vfs_read", "afs_read"},
	} {
		bad, err := Read(bytes.Replace(data.Bytes(), []byte(change[0]), []byte(change[1]), 1))
		if err != nil {
			t.Fatal(err)
		}
		if err := bad.Check(); err == nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzFindBanner(f *testing.F) {
	p := profile(f, builder())
	var plain bytes.Buffer
	if err := p.WriteJSON(&plain); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes())
	f.Add(gzipped(f, plain.Bytes()))
	f.Add([]byte("BZh91AY&SY"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := FindBanner(bytes.NewReader(b)); len(got) > maxSymbolText || err != nil && got != "" {
			t.Errorf("%q, %v", got, err)
		}
		if p, err := Read(b); err == nil {
			_ = p.Check()
		}
	})
}
