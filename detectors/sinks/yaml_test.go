package sinks

import (
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// TestTheExampleIsRight: what the documentation shows is decoded, and Check has nothing
// against it.
func TestTheExampleIsRight(t *testing.T) {
	doc, err := os.ReadFile("../../docs/findings.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(doc), "\n    findings:")
	example, _, _ = strings.Cut(example, "\n\n")
	if !ok {
		t.Fatal("docs/findings.md has no example")
	}
	var c struct {
		Findings []Config `yaml:"findings"`
	}
	if err := yaml.Load([]byte("    findings:"+example), &c, yaml.WithKnownFields()); err != nil {
		t.Fatalf("%v\n%s", err, example)
	}
	if err := Check(c.Findings); err != nil || len(c.Findings) != 4 {
		t.Errorf("%v, %d sinks", err, len(c.Findings))
	}
}

func TestAnUnknownFieldIsAnError(t *testing.T) {
	var c []Config
	if err := yaml.Load([]byte("- file: {pth: /x}"), &c, yaml.WithKnownFields()); err == nil || !strings.Contains(err.Error(), "pth") {
		t.Error(err)
	}
}
