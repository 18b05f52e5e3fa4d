package main

import (
	"bytes"
	"os"
	"testing"
)

// TestNoDiff: what is in the repository is what make generate makes.
func TestNoDiff(t *testing.T) {
	t.Chdir("../..")
	schema, docs, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{schemaFile: schema, docsFile: docs} {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what make generate makes (%v)", name, err)
		}
	}
}
