package near

import (
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	names := []string{"read", "write", "", "openat", "open", "openat2", "read"}
	for name, want := range map[string][]string{"opena": {"openat", "open"}, "raed": {"read", "open"}, "write": {"write", "read"}} {
		if got := Names(name, names, 2); !slices.Equal(got, want) {
			t.Errorf("%s: %q, not %q", name, got, want)
		}
	}
	if got := Hint("opem", names[2:6]); got != ` (near it: "open", "openat", "openat2")` {
		t.Errorf("%s", got)
	}
	if got := Hint("x", nil); got != "" {
		t.Errorf("%q", got)
	}
	// A hostile guest's names cost no more than others.
	many := make([]string, 1<<17)
	for i := range many {
		many[i] = strings.Repeat("a\x1b", 200)
	}
	if got := Hint("x", many); strings.Contains(got, "\x1b") || strings.Count(got, ",") != 0 {
		t.Errorf("%.200q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {strings.Repeat("a", 100), strings.Repeat("a", 99) + "b", 0}} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d", c.a, c.b, got)
		}
	}
}
