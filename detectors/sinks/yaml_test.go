package sinks

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

// prose are the lines of the package's configuration that are no example.
var prose = regexp.MustCompile(`(?m)^#( [^ ].*)?$`)

// TestTheExamplesAreRight: what the documentation and the package's configuration show is
// decoded, and Check has nothing against it.
func TestTheExamplesAreRight(t *testing.T) {
	doc, err := os.ReadFile("../../docs/findings.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(doc), "\n    findings:")
	example, _, _ = strings.Cut(example, "\n\n")
	if !ok {
		t.Fatal("docs/findings.md has no example")
	}
	packaged, err := os.ReadFile("../../packaging/hprobed.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"docs/findings.md": "    findings:" + example, "packaging/hprobed.yaml": strings.ReplaceAll(prose.ReplaceAllString(string(packaged), ""), "\n#", "\n")} {
		var c struct {
			Findings []Config      `yaml:"findings"`
			Audit    rotate.Config `yaml:"audit"`
			Metrics  any           `yaml:"metrics"`
		}
		if err := yaml.Load([]byte(text), &c, yaml.WithKnownFields()); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			continue
		}
		if err := Check(c.Findings); err != nil || len(c.Findings) != 4 {
			t.Errorf("%s: %v, %d sinks", name, err, len(c.Findings))
		}
		if err := c.Audit.Check(); name == "packaging/hprobed.yaml" && err != nil {
			t.Errorf("%s: audit: %v", name, err)
		}
	}
}

func TestAnUnknownFieldIsAnError(t *testing.T) {
	var c []Config
	if err := yaml.Load([]byte("- file: {pth: /x}"), &c, yaml.WithKnownFields()); err == nil || !strings.Contains(err.Error(), "pth") {
		t.Error(err)
	}
}
