package policy

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/profiles/near"
)

//go:embed stock/*.yaml
var stockFiles embed.FS

//go:embed policy.schema.json
var schema string

// Schema is the JSON schema of a policy's document (draft 2020-12), for editors.
func Schema() string { return schema }

// Stock are the policies that come with hprobe, by name: all are in observe mode, and for
// all guests.
func Stock() []*Policy {
	files, err := stockFiles.ReadDir("stock")
	if err != nil {
		panic(err) // it is in the binary
	}
	var all []*Policy
	for _, f := range files {
		text, err := stockFiles.ReadFile(path.Join("stock", f.Name()))
		if err != nil {
			panic(err)
		}
		some, err := Parse("stock/"+f.Name(), text)
		if err != nil {
			panic(err)
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b *Policy) int { return strings.Compare(a.Name(), b.Name()) })
	return all
}

// StockText is the file of a stock policy.
func StockText(name string) (string, error) {
	text, err := stockFiles.ReadFile("stock/" + name + ".yaml")
	if err != nil {
		var names []string
		for _, p := range Stock() {
			names = append(names, p.Name())
		}
		return "", fmt.Errorf("there is no stock policy %q%s: hprobe policy stock lists them", name, near.Hint(name, names))
	}
	return string(text), nil
}
