package main

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/detectors/policy/internal/shape"
)

// reference is the part of the documentation that has all fields.
func (d *document) reference() string {
	var out strings.Builder
	for i, t := range d.types {
		title := t.Name()
		if i == 0 {
			title = "The document"
		}
		fmt.Fprintf(&out, "### %s\n\n%s\n\n| field | is | |\n|---|---|---|\n", title, d.comments[t.Name()])
		for _, f := range shape.Fields(t) {
			fmt.Fprintf(&out, "| `%s` | %s | %s%s |\n", f.Name, kind(&f), cell(d.comments[t.Name()+"."+f.Go]), cell(more(&f)))
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// kind is a field's type, for people.
func kind(f *shape.Field) string {
	name, t := "", f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[policy.Date]():
		name = "a day"
	case t == reflect.TypeFor[policy.Duration]():
		name = "a time"
	case t == reflect.TypeFor[policy.Hex]():
		name = "bytes"
	case t == reflect.TypeFor[policy.Any]():
		name = "a text or a list"
	case isText(t), t.Kind() == reflect.String:
		name = "a text"
	case t.Kind() == reflect.Struct:
		name = link(t)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		name = "a list of " + link(t.Elem())
	case t.Kind() == reflect.Slice:
		name = "a list of texts"
	case t.Kind() == reflect.Map:
		name = "a map of texts"
	case t.Kind() == reflect.Bool:
		name = "true or false"
	default:
		name = "a number"
	}
	if f.Required {
		return "**" + name + "**"
	}
	return name
}

func link(t reflect.Type) string {
	return fmt.Sprintf("[%s](#%s)", t.Name(), strings.ToLower(t.Name()))
}

// more is what a field's tag says of it.
func more(f *shape.Field) (text string) {
	if f.Enum != nil {
		text += " One of `" + strings.Join(f.Enum, "`, `") + "`."
	}
	if f.Default != "" {
		text += fmt.Sprintf(" Default: %s.", f.Default)
	}
	if f.Example != "" {
		text += fmt.Sprintf(" Example: `%s`.", f.Example)
	}
	return text
}

// cell makes a text fit for a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// stock lists the stock policies.
func stock() string {
	var out strings.Builder
	out.WriteString("| policy | |\n|---|---|\n")
	for _, p := range policy.Stock() {
		fmt.Fprintf(&out, "| [%s](../detectors/policy/stock/%s.yaml) | %s |\n", p.Name(), p.Name(), p.Metadata.Title)
	}
	return out.String()
}
