package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// Bounds of a policy file.
const (
	maxFile     = 256 << 10 // bytes
	maxPolicies = 256       // documents
)

// ReadFile reads the policies of a file.
func ReadFile(name string) ([]*Policy, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("a policy: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("a policy: %w", err)
	}
	return Parse(name, data)
}

// Parse reads the policies of a file, whose name is for errors: Errors has all that is
// wrong with it. What only a guest's kernel can tell (its symbols, its types) Compile
// finds wrong.
func Parse(file string, data []byte) ([]*Policy, error) {
	r := &reader{file: file}
	if len(data) > maxFile {
		r.add(position{1, 1}, "", "the file is larger than %d bytes, which no policy is: make several of it", maxFile)
		return nil, r.err()
	}
	if i := invalidUTF8(data); i >= 0 {
		r.add(positionOf(data, i), "", "this is no text in UTF-8: write it anew in an editor that does")
		return nil, r.err()
	}
	docs := r.documents(data)
	var all []*Policy
	for _, doc := range docs {
		p := &Policy{file: file, doc: doc, positions: map[string]position{}}
		before := len(r.all)
		d := &decoder{reader: r, positions: p.positions}
		p.positions[""] = at(doc)
		if d.usable(doc, "") {
			d.fields(doc, reflect.ValueOf(p).Elem(), "")
		}
		r.check(p, before)
		all = append(all, p)
	}
	r.checkNames(all)
	if len(docs) == 0 && r.all == nil {
		r.add(position{1, 1}, "", "there is no policy in it: one begins with apiVersion: %s", Version)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return all, nil
}

// invalidUTF8 is where the first byte is that is no UTF-8, or -1.
func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// positionOf is where a byte is.
func positionOf(data []byte, i int) position {
	before := data[:i]
	start := bytes.LastIndexByte(before, '\n') + 1
	return position{bytes.Count(before, []byte("\n")) + 1, utf8.RuneCount(before[start:]) + 1}
}

// documents splits a file in YAML documents; empty ones are left out.
func (r *reader) documents(data []byte) (docs []*yaml.Node) {
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithUniqueKeys(false))
	for err == nil {
		var doc yaml.Node
		if err = loader.Load(&doc); err != nil {
			break
		}
		for _, content := range doc.Content {
			if empty := content.Kind == yaml.ScalarNode && content.ShortTag() == "!!null"; !empty {
				docs = append(docs, content)
			}
		}
		if len(docs) > maxPolicies {
			r.add(at(docs[maxPolicies]), "", "more than %d policies in a file: make several of it", maxPolicies)
			return nil
		}
	}
	if !errors.Is(err, io.EOF) {
		r.syntax(err)
	}
	return docs
}

// syntax is what YAML says that is no YAML.
func (r *reader) syntax(err error) {
	var one *yaml.LoadError
	if !errors.As(err, &one) {
		r.add(position{1, 1}, "", "this is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	where := one.Mark
	text := one.Message
	if one.ContextMsg != "" {
		text = one.ContextMsg + " " + text
	}
	r.add(position{max(where.Line, 1), max(where.Column, 1)}, "", "this is no YAML: %s", text)
}
