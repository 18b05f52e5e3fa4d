// Package shape reads what the types of a policy say of its document: which fields
// there are, by which names, and within which bounds. The parser, the JSON schema and
// the reference of policies all are made of it.
package shape

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Bounds where a field's tag has none.
const (
	MaxText  = 4096 // bytes of a text
	MaxItems = 64   // of a list or map
)

// Field is a field of a struct of the document.
type Field struct {
	Name string // in the document
	Go   string // in the struct
	Type reflect.Type
	// Index is where it is in the struct.
	Index    int
	Required bool
	// Number says that a text may also be written as a number: 0x40000000.
	Number bool
	// OneOf: one of the fields with this, and no other, is given.
	OneOf   bool
	Enum    []string // the texts that there are
	Pattern string   // a regular expression that a text matches, of RE2 and ECMA 262
	Default string   // what it is where it is not given, for people
	Example string
	// Min and Max bound a number; Max also the bytes of a text and the items of a list.
	Min, Max uint64
}

// Fields are those of a struct that have a tag yaml:"name". A tag is:"…" says more, in
// words with a ; between them: required, number, one, enum=a|b, pattern=…, default=…,
// example=…, min=1, max=64.
func Fields(t reflect.Type) []Field {
	var all []Field
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		one := Field{Name: name, Go: f.Name, Type: f.Type, Index: i}
		switch f.Type.Kind() {
		case reflect.String:
			one.Max = MaxText
		case reflect.Slice, reflect.Map:
			one.Max = MaxItems
		}
		for _, word := range strings.Split(f.Tag.Get("is"), ";") {
			one.read(strings.TrimSpace(word))
		}
		all = append(all, one)
	}
	return all
}

// read takes a word of a tag. One that is not known is a mistake in the source.
func (f *Field) read(word string) {
	key, value, _ := strings.Cut(word, "=")
	switch key {
	case "":
	case "required":
		f.Required = true
	case "number":
		f.Number = true
	case "one":
		f.OneOf = true
	case "enum":
		f.Enum = strings.Split(value, "|")
	case "pattern":
		f.Pattern = value
	case "default":
		f.Default = value
	case "example":
		f.Example = value
	case "min":
		f.Min = number(value)
	case "max":
		f.Max = number(value)
	default:
		panic(fmt.Sprintf("%s: no word of a tag: %q", f.Go, word))
	}
}

func number(text string) uint64 {
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		panic(err)
	}
	return n
}
