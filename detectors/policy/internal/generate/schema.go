package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v4"

	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/detectors/policy/internal/shape"
)

type object = map[string]any

// isText says whether a type is written as a text in the document.
func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// schema is the document as JSON Schema, draft 2020-12.
func (d *document) schema() ([]byte, error) {
	defs := object{}
	for _, t := range d.types[1:] {
		one, err := d.structure(t)
		if err != nil {
			return nil, err
		}
		defs[t.Name()] = one
	}
	root, err := d.structure(d.types[0])
	if err != nil {
		return nil, err
	}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = fmt.Sprintf("%s, a policy of hprobe (%s)", policy.Kind, policy.Version)
	root["$defs"] = defs
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err = enc.Encode(root)
	return out.Bytes(), err
}

func (d *document) structure(t reflect.Type) (object, error) {
	properties := object{}
	var required, one []string
	for _, f := range shape.Fields(t) {
		p := property(&f)
		p["description"] = d.comments[t.Name()+"."+f.Go]
		if f.Example != "" {
			var v any
			if err := yaml.Load([]byte(f.Example), &v); err != nil {
				return nil, fmt.Errorf("the example of %s.%s: %w", t.Name(), f.Go, err)
			}
			p["examples"] = []any{v}
		}
		properties[f.Name] = p
		if f.Required {
			required = append(required, f.Name)
		}
		if f.OneOf {
			one = append(one, f.Name)
		}
	}
	out := object{"type": "object", "additionalProperties": false, "description": d.comments[t.Name()], "properties": properties}
	if required != nil {
		out["required"] = required
	}
	var choices []any
	for _, name := range one {
		choices = append(choices, object{"required": []string{name}})
	}
	if choices != nil {
		out["oneOf"] = choices
	}
	return out, nil
}

// property is the schema of a field's value.
func property(f *shape.Field) object {
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[policy.Date]():
		return object{"type": "string", "format": "date"}
	case isText(t), t.Kind() == reflect.String:
		return text(f)
	case t == reflect.TypeFor[policy.Any]():
		one := shape.Field{Number: f.Number, Max: shape.MaxText}
		return object{"oneOf": []any{text(&one), object{"type": "array", "minItems": 1, "maxItems": f.Max, "items": text(&one)}}}
	case t.Kind() == reflect.Struct:
		return object{"$ref": "#/$defs/" + t.Name()}
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return object{"type": "array", "minItems": 1, "maxItems": f.Max, "items": object{"$ref": "#/$defs/" + t.Elem().Name()}}
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "minItems": 1, "maxItems": f.Max, "items": text(&shape.Field{Max: shape.MaxText})}
	case t.Kind() == reflect.Map:
		return object{"type": "object", "maxProperties": f.Max, "additionalProperties": text(&shape.Field{Max: shape.MaxText})}
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean", "default": false}
	}
	out := object{"type": "integer", "minimum": f.Min, "maximum": f.Max}
	if n, err := strconv.ParseUint(f.Default, 10, 64); err == nil {
		out["default"] = n
	}
	return out
}

func text(f *shape.Field) object {
	out := object{"type": "string", "minLength": 1}
	if f.Number {
		out["type"] = []string{"string", "integer"}
	}
	if f.Max > 0 && f.Enum == nil {
		out["maxLength"] = f.Max
	}
	if f.Pattern != "" {
		out["pattern"] = f.Pattern
	}
	if f.Enum != nil {
		delete(out, "minLength")
		out["enum"] = f.Enum
		if slices.Contains(f.Enum, f.Default) {
			out["default"] = f.Default
		}
	}
	return out
}
