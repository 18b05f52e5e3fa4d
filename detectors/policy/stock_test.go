package policy

import (
	"strings"
	"testing"
)

// TestStock: stock policies say what they cover and what not, and change nothing unless
// somebody wants it.
func TestStock(t *testing.T) {
	all := Stock()
	if len(all) < 9 {
		t.Errorf("%d policies", len(all))
	}
	for _, p := range all {
		text, err := StockText(p.Name())
		if err != nil || !strings.Contains(text, "name: "+p.Name()) {
			t.Errorf("%s: %v", p.Name(), err)
		}
		if p.Enforces() || !p.Selects(Guest{Name: "any", OS: "linux"}) || p.Metadata.Title == "" || !strings.Contains(p.Metadata.Description, "Does not cover: ") {
			t.Errorf("%s: %+v", p.Name(), p.Metadata)
		}
		if cve := strings.HasPrefix(p.Name(), "cve-"); cve && (len(p.Metadata.References) == 0 || !strings.Contains(p.Metadata.Description, "Covers: ") || !strings.Contains(p.Metadata.Description, "Kernels: ")) {
			t.Errorf("%s says too little: %s", p.Name(), p.Metadata.Description)
		}
		// Each can be enforced.
		if _, err := Parse("x", []byte(strings.Replace(text, "spec:\n", "spec:\n  mode: enforce\n", 1))); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"modul-load", "../policy", ""} {
		if _, err := StockText(bad); err == nil || !strings.Contains(err.Error(), "there is no stock policy") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
