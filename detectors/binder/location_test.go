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
		"a:b":                {Symbol: "a", Callee: "b"},
		"a:b.cold|c":         {Symbol: "a", Callee: "b.cold|c"},
		"0xffffffff81000000": {Offset: 0xffffffff81000000},
	} {
		if got, err := ParseLocation(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "!", "a!", "!a", "a b", "a+", "a+x", "a+0x10000000", "0x", "0xzz", "a\x1b[2J", "a!b!c", ":", "a:", ":b", "a:b|", "a:b:c", "a:b+4", "a+4:b", "m!a:b", "a:b c", "a" + strings.Repeat("|b", 9), "a:b" + strings.Repeat("|b", 8), strings.Repeat("a", 600)} {
		if got, err := ParseLocation(bad); err == nil {
			t.Errorf("%q is %+v", bad, got)
		} else if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add("vuln!vuln_copy+0x10")
	f.Add("caller:callee|other")
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
		if err == nil && l.Callee != "" && (l.Module != "" || l.Offset != 0 || len(l.callees()) > maxCallees || l.Entry()) {
			t.Errorf("%q is %+v", text, l)
		}
		if err == nil && l.Symbol != "" && (l.Offset > maxOffset || !isName(l.Symbol)) {
			t.Errorf("%q is %+v", text, l)
		}
	})
}
