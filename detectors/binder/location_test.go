package binder

import (
	"strings"
	"testing"
)

func TestParseLocation(t *testing.T) {
	for text, want := range map[string]Location{
		"do_exit":            {Symbol: "do_exit"},
		"do_exit+0x10":       {Symbol: "do_exit", Offset: 0x10},
		"vuln!vuln_copy":     {Module: "vuln", Symbol: "vuln_copy"},
		"vuln!a.isra.0+4":    {Module: "vuln", Symbol: "a.isra.0", Offset: 4},
		"0xffffffff81000000": {Offset: 0xffffffff81000000},
	} {
		if got, err := ParseLocation(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "!", "a!", "!a", "a b", "a+", "a+x", "a+0x10000000", "0x", "0xzz", "a\x1b[2J", "a!b!c", strings.Repeat("a", 600)} {
		if got, err := ParseLocation(bad); err == nil {
			t.Errorf("%q is %+v", bad, got)
		} else if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add("vuln!vuln_copy+0x10")
	f.Add("image:/lib/libstdc++.so.6!f+0x10")
	f.Add("image:sh+0x1234")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLocation(text)
		if err == nil && l.Image != "" {
			if !isPath(l.Image) || l.Symbol != "" && (l.Offset > maxOffset || !isUserName(l.Symbol)) || l.Offset >= maxImageOffset || l.Module != "" {
				t.Errorf("%q is %+v", text, l)
			}
			return
		}
		if err == nil && l.Symbol != "" && (l.Offset > maxOffset || !isName(l.Symbol)) {
			t.Errorf("%q is %+v", text, l)
		}
	})
}
