package store

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// So much of a kernel as it takes to know it, at a slide.
const (
	textAt   = 0xffffffff81000000
	entryAt  = textAt + 0x40
	bannerAt = textAt + 0x1000
	notesAt  = textAt + 0x2000
	rootAt   = textAt + 0x3000
	slide    = 6 << 20
)

type guest struct {
	xenevents.Domain
	info xenevents.DomainInfo
}

// newGuest runs a kernel with this banner, whose build id is 0xabcd.
func newGuest(t testing.TB, banner string) *guest {
	t.Helper()
	h := sim.NewHost()
	g := h.Add(sim.Config{ID: 3, Name: "guest", VCPUs: 1, Frames: 4096})
	s := g.NewSpace()
	s.Page(entryAt&^0xfff+slide, 0x90)
	s.Page(bannerAt+slide, append([]byte(banner), '\n', 0)...)
	s.Page(notesAt+slide, []byte("\x04\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00GNU\x00\xab\xcd\x00\x00")...)
	s.Map(rootAt+slide, xenevents.GPA(s.CR3()).GFN())
	for at := uint64(6 << 20); at > 0; at -= xenevents.PageSize { // less is no kernel; frames come from the top
		s.Page(xenevents.GVA(textAt + 0x10000 + slide + at))
	}
	g.VCPU(0).Set(func(r *xenevents.Registers) { r.CR3, r.LSTAR = s.CR3(), entryAt+slide })
	dom, err := h.Open(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dom.Close() })
	info, err := dom.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info.UUID = [16]byte{0xaa}
	return &guest{dom, info}
}

const (
	own   = "aa000000-0000-0000-0000-000000000000"
	other = "bb000000-0000-0000-0000-000000000000"
)

func toJSON(p *isf.Profile, b *bytes.Buffer) error    { return p.WriteJSON(b) }
func toCompact(p *isf.Profile, b *bytes.Buffer) error { return p.WriteCompact(b) }

func gz(t testing.TB, b []byte) []byte {
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

// zipped is a zip file with these files, name and content in turn.
func zipped(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		f, err := w.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFind(t *testing.T) {
	ofA := func(m isf.Meta) *isf.Profile { m.Banner = bannerA; return profile(t, m) }
	isfA := string(written(t, ofA(isf.Meta{BuildID: "abcd"}), toJSON))
	isfB := string(written(t, profile(t, isf.Meta{Banner: bannerB}), toJSON))
	compact := func(m isf.Meta) string { return string(written(t, ofA(m), toCompact)) }
	for name, c := range map[string]struct {
		files map[string]string // in the second folder, and with "1/" in the first one
		from  string            // "": there is none
		why   string
	}{
		"nothing":                     {nil, "", "no profile in 1 or 2 is of the guest's kernel, \"" + bannerA + "\""},
		"compact":                     {map[string]string{"1/x.hprofile": compact(isf.Meta{BuildID: "abcd"})}, "1/x.hprofile", "its banner and build id are the guest's"},
		"without a build id":          {map[string]string{"1/x.hprofile": compact(isf.Meta{})}, "1/x.hprofile", "its banner is the guest's"},
		"another build":               {map[string]string{"1/x.hprofile": compact(isf.Meta{BuildID: "abce"})}, "", "another build"},
		"another kernel":              {map[string]string{"linux/x.json": isfB}, "", "is of the guest's kernel"},
		"Volatility's folders":        {map[string]string{"linux/a/x.json.gz": string(gz(t, []byte(isfA))), "linux/b.json": isfB, "windows/y.json": "{"}, "linux/a/x.json.gz", "its banner and build id are the guest's"},
		"Volatility's zip":            {map[string]string{"linux.zip": string(zipped(t, "linux/b.json", isfB, "windows/y.json", isfA, "linux/x.json", isfA)), "windows.zip": "x"}, "linux.zip!linux/x.json", "its banner and build id are the guest's"},
		"of another system only":      {map[string]string{"mac/x.json": isfA, "windows/x.json": isfA}, "", ""},
		"damaged":                     {map[string]string{"linux/x.json.gz": string(gz(t, []byte(isfA))[:100]), "linux/y.hprofile": "x", "z.zip": "x"}, "", "x.json.gz: "},
		"damaged and good":            {map[string]string{"a.json": strings.Replace(isfA, "{", "[", 1), "b.json": isfA}, "b.json", "its banner and build id are the guest's"},
		"captured":                    {map[string]string{"1/captured/x.hprofile": compact(isf.Meta{BuildID: "abcd", Captured: own})}, "1/captured/x.hprofile", "captured from the guest before"},
		"captured from another":       {map[string]string{"1/captured/x.hprofile": compact(isf.Meta{BuildID: "abcd", Captured: other})}, "", "captured from another guest"},
		"captured from another, ISF":  {map[string]string{"x.json": string(written(t, ofA(isf.Meta{Captured: other}), toJSON))}, "", "captured from another guest"},
		"captured, of another kernel": {map[string]string{"1/captured/x.hprofile": compact(isf.Meta{BuildID: "abce", Captured: own})}, "", "another build"},
		"the compact form first":      {map[string]string{"a.json": isfA, "b.hprofile": compact(isf.Meta{BuildID: "abcd"})}, "b.hprofile", "its banner and build id are the guest's"},
		"a file comes first":          {map[string]string{"1/captured/x.hprofile": compact(isf.Meta{Captured: own}), "z.json": isfA}, "z.json", "its banner and build id are the guest's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for path, content := range c.files {
				if !strings.HasPrefix(path, "1/") {
					path = "2/" + path
				}
				put(t, path, []byte(content))
			}
			g := newGuest(t, bannerA)
			for range 2 { // the second time by what the first one left
				found, err := Open("1", "2").Find(t.Context(), g, &g.info)
				var none *NoProfileError
				switch {
				case c.from == "":
					if !errors.As(err, &none) || !strings.Contains(err.Error(), c.why) || none.Kernel != bannerA || name == "another kernel" && len(none.Passed) > 0 {
						t.Fatalf("%+v, %v", found, err)
					}
					continue
				case err != nil:
					t.Fatal(err)
				case strings.TrimPrefix(found.From, "2/") != c.from || !strings.Contains(found.Why, c.why) || found.Kernel != bannerA:
					t.Errorf("%+v", found)
				}
				if p, err := isf.ReadFile(found.File); err != nil || p.Meta().Banner != bannerA || !strings.HasSuffix(found.File, Ext) {
					t.Errorf("%+v: %v", found, err)
				}
			}
		})
	}
}

// TestIndex: a file is read once, and again when it is another one.
func TestIndex(t *testing.T) {
	t.Chdir(t.TempDir())
	isfOf := func(banner string) []byte { return written(t, profile(t, isf.Meta{Banner: banner}), toJSON) }
	put(t, "2/linux/x.json", isfOf(bannerB))
	put(t, "1/other", nil)
	s := Open("1", "2")
	banner := func() string {
		t.Helper()
		all, err := s.List(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		return all[0].Banner
	}
	if got := banner(); got != bannerB {
		t.Errorf("%q", got)
	}
	index, err := os.ReadFile("1/.index.json")
	if err != nil {
		t.Fatal(err)
	}
	put(t, "1/.index.json", bytes.Replace(index, []byte(bannerB), []byte("known"), 1))
	if got := banner(); got != "known" {
		t.Errorf("it was read again: %q", got)
	}
	put(t, "2/linux/x.json", isfOf(bannerA+" and more"))
	if got := banner(); got != bannerA+" and more" {
		t.Errorf("%q", got)
	}
	put(t, "1/.index.json", index[:len(index)/2])
	if got := banner(); got != bannerA+" and more" {
		t.Errorf("with half an index: %q", got)
	}
	if err := os.RemoveAll("2"); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if index, err := os.ReadFile("1/.index.json"); err != nil || strings.Contains(string(index), "x.json") {
		t.Errorf("%q, %v", index, err)
	}
}

// TestReadOnly: a store that can't be written to finds profiles all the same.
func TestReadOnly(t *testing.T) {
	t.Chdir(t.TempDir())
	put(t, "2/x.json", written(t, profile(t, isf.Meta{Banner: bannerA}), toJSON))
	g := newGuest(t, bannerA)
	s := Open("/proc/hprobe", "2") // root could write to any other folder
	if found, err := s.Find(t.Context(), g, &g.info); err != nil || found.File != filepath.Join("2", "x.json") {
		t.Errorf("%+v, %v", found, err)
	}
	if _, err := s.Add(profile(t, isf.Meta{Banner: bannerA})); err == nil {
		t.Error("it was written")
	}
}
