// Command generate makes the JSON schema of policies and their reference, of the types
// in policy.go and the comments there.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"

	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/detectors/policy/internal/shape"
)

// The files, from the room's folder.
const (
	sourceFile   = "policy.go"
	schemaFile   = "policy.schema.json"
	templateFile = "internal/generate/policies.md"
	docsFile     = "../../docs/policies.md"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run() error {
	schema, docs, err := generate()
	if err != nil {
		return err
	}
	if err := os.WriteFile(schemaFile, schema, 0o644); err != nil {
		return err
	}
	return os.WriteFile(docsFile, docs, 0o644)
}

func generate() (schema, docs []byte, err error) {
	d, err := read(sourceFile)
	if err != nil {
		return nil, nil, err
	}
	if schema, err = d.schema(); err != nil {
		return nil, nil, err
	}
	template, err := os.ReadFile(templateFile)
	if err != nil {
		return nil, nil, err
	}
	text := strings.NewReplacer("<!-- reference -->\n", d.reference(), "<!-- stock -->\n", stock()).Replace(string(template))
	return schema, []byte(strings.TrimSpace(text) + "\n"), nil
}

// document is what the source says of the types: by "Type" and "Type.Field".
type document struct {
	comments map[string]string
	types    []reflect.Type // in the order of the document
}

func read(file string) (*document, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	d := &document{comments: map[string]string{}}
	ast.Inspect(parsed, func(n ast.Node) bool {
		g, ok := n.(*ast.GenDecl)
		if !ok {
			return true
		}
		for _, spec := range g.Specs {
			t, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			d.comments[t.Name.Name] = oneLine(g.Doc)
			if s, ok := t.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						d.comments[t.Name.Name+"."+name.Name] = oneLine(f.Doc)
					}
				}
			}
		}
		return false
	})
	d.collect(reflect.TypeFor[policy.Policy]())
	for _, t := range d.types {
		for _, f := range shape.Fields(t) {
			if d.comments[t.Name()+"."+f.Go] == "" {
				return nil, fmt.Errorf("%s.%s has no comment, which is its documentation", t.Name(), f.Go)
			}
		}
	}
	return d, nil
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }

// collect lists the structs of the document, the outer ones first.
func (d *document) collect(t reflect.Type) {
	for _, known := range d.types {
		if known == t {
			return
		}
	}
	d.types = append(d.types, t)
	for _, f := range shape.Fields(t) {
		if of := inner(f.Type); of.Kind() == reflect.Struct && !isText(of) {
			d.collect(of)
		}
	}
}

// inner is what a list, a map or a pointer is of.
func inner(t reflect.Type) reflect.Type {
	for {
		switch {
		case isText(t):
			return t
		case t.Kind() == reflect.Pointer, t.Kind() == reflect.Slice:
			t = t.Elem()
		default:
			return t
		}
	}
}
