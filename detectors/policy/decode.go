package policy

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/hprobe/hprobe/detectors/policy/internal/shape"
	"github.com/hprobe/hprobe/profiles/near"
)

// decoder reads a document's nodes into a Policy, and goes on after what is wrong.
type decoder struct {
	*reader
	positions map[string]position
}

func at(n *yaml.Node) position { return position{n.Line, n.Column} }

// kinds says what a node is, for people.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if name, ok := map[string]string{"!!int": "a number", "!!float": "a number with a fraction", "!!bool": "true or false", "!!null": "nothing", "!!timestamp": "a date"}[n.ShortTag()]; ok {
			return name
		}
		return "a text"
	}
	return "an alias"
}

// usable refuses what documents of policies do not have: anchors and aliases, which
// could make much of little, and tags.
func (d *decoder) usable(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		d.add(at(n), path, "an alias, %q: there are none in a policy; write what it stands for", "*"+shorten(n.Value))
		return false
	case n.Anchor != "":
		d.add(at(n), path, "an anchor, %q: there are none in a policy; leave it out, and write what its aliases stand for", "&"+shorten(n.Anchor))
		return false
	case n.Style&yaml.TaggedStyle != 0:
		d.add(at(n), path, "a tag, %q: there are none in a policy; leave it out", shorten(n.Tag))
		return false
	}
	return true
}

// value reads a node into v, which a field describes.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, f *shape.Field) {
	d.positions[path] = at(n)
	if !d.usable(n, path) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		d.add(at(n), path, "there is nothing: leave the field out, or say what it is%s", wanted(f))
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if d.scalar(n, path, f, "!!str", "!!timestamp", "!!int", "!!float") {
			err := text.UnmarshalText([]byte(n.Value))
			if tag := n.ShortTag(); err == nil && (tag == "!!int" || tag == "!!float") {
				err = fmt.Errorf("it is %s, and must be a text: write it in quotes, '%s'", kindName(n), n.Value)
			}
			if err != nil {
				d.add(at(n), path, "%v", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.fields(n, v, path)
	case reflect.Slice:
		d.list(n, v, path, f)
	case reflect.Map:
		d.texts(n, v, path, f)
	case reflect.String:
		d.text(n, v, path, f)
	case reflect.Bool:
		if d.scalar(n, path, f, "!!bool") {
			v.SetBool(strings.EqualFold(n.Value, "true"))
		}
	default:
		d.number(n, v, path, f)
	}
}

// wanted says what a field is, at the end of an error.
func wanted(f *shape.Field) string {
	switch {
	case f.Example != "":
		return fmt.Sprintf(" (like %s)", f.Example)
	case f.Enum != nil:
		return " (one of " + strings.Join(f.Enum, ", ") + ")"
	}
	return ""
}

// scalar says whether a node is one of the kinds of tags, and of a bounded length.
func (d *decoder) scalar(n *yaml.Node, path string, f *shape.Field, tags ...string) bool {
	switch {
	case n.Kind != yaml.ScalarNode || !slices.Contains(tags, n.ShortTag()):
		want := map[string]string{"!!str": "a text", "!!bool": "true or false", "!!int": "a whole number"}[tags[0]]
		hint := wanted(f)
		if n.Kind == yaml.ScalarNode && tags[0] == "!!str" {
			hint = fmt.Sprintf(": write it in quotes, '%s'", shorten(n.Value))
		}
		d.add(at(n), path, "it is %s, and must be %s%s", kindName(n), want, hint)
		return false
	case f.Max > 0 && tags[0] == "!!str" && uint64(len(n.Value)) > f.Max:
		d.add(at(n), path, "a text of %d bytes: %d are allowed", len(n.Value), f.Max)
		return false
	}
	return true
}

func shorten(s string) string {
	const limit = 40
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

func (d *decoder) text(n *yaml.Node, v reflect.Value, path string, f *shape.Field) {
	tags := []string{"!!str"}
	if f.Number {
		tags = append(tags, "!!int")
	}
	if !d.scalar(n, path, f, tags...) {
		return
	}
	switch text := n.Value; {
	case strings.TrimSpace(text) == "":
		d.add(at(n), path, "an empty text: leave the field out, or say what it is%s", wanted(f))
	case !printable(text):
		d.add(at(n), path, "a text with characters that can't be printed: %q", shorten(text))
	case f.Enum != nil && !slices.Contains(f.Enum, text):
		d.add(at(n), path, "%q is none of %s%s", shorten(text), strings.Join(f.Enum, ", "), near.Hint(text, f.Enum))
	case f.Pattern != "" && !regexp.MustCompile(f.Pattern).MatchString(text):
		d.add(at(n), path, "%q can't be one%s: it must match %s", shorten(text), wanted(f), f.Pattern)
	default:
		v.SetString(text)
	}
}

// printable says whether a terminal shows a text as it is, and obeys nothing in it.
func printable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && !strconv.IsPrint(r) })
}

func (d *decoder) number(n *yaml.Node, v reflect.Value, path string, f *shape.Field) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		if digits := strings.TrimRight(n.Value, "%/abcdefghijklmnopqrstuvwxyz "); digits != n.Value && digits != "" {
			d.add(at(n), path, "%q: a whole number without a unit is wanted here; write %s", shorten(n.Value), digits)
			return
		}
	}
	if !d.scalar(n, path, f, "!!int") {
		return
	}
	got, err := strconv.ParseUint(strings.ReplaceAll(n.Value, "_", ""), 0, 64)
	if err != nil || got < f.Min || f.Max > 0 && got > f.Max {
		d.add(at(n), path, "%s is too small or too large: from %d to %d is allowed", shorten(n.Value), f.Min, f.Max)
		return
	}
	v.SetUint(got)
}

// list reads a list; of an Any also one item without a list.
func (d *decoder) list(n *yaml.Node, v reflect.Value, path string, f *shape.Field) {
	items := n.Content
	_, one := v.Interface().(Any)
	switch {
	case n.Kind == yaml.ScalarNode && one:
		items = []*yaml.Node{n}
	case n.Kind != yaml.SequenceNode:
		d.add(at(n), path, "it is %s, and must be a list: write - before each item, or [one, another]", kindName(n))
		return
	case len(items) == 0:
		d.add(at(n), path, "an empty list: leave the field out, or say what is in it%s", wanted(f))
		return
	case uint64(len(items)) > f.Max:
		d.add(at(n), path, "a list of %d items: %d are allowed", len(items), f.Max)
		return
	}
	item := shape.Field{Max: shape.MaxText, Number: f.Number, Example: f.Example}
	if n.Kind == yaml.SequenceNode {
		item.Example = ""
	}
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, content := range items {
		d.value(content, v.Index(i), fmt.Sprintf("%s[%d]", path, i), &item)
	}
}

// pairs calls f for each key of a map, once.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node)) bool {
	if n.Kind != yaml.MappingNode {
		d.add(at(n), path, "it is %s, and must be a map: write KEY: VALUE", kindName(n))
		return false
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		line, twice := seen[key.Value]
		switch {
		case len(d.all) >= enough:
			return true
		case !d.usable(key, path):
		case key.Kind != yaml.ScalarNode:
			d.add(at(key), path, "a key is a text, and this one is %s", kindName(key))
		case !printable(key.Value):
			d.add(at(key), path, "a key with characters that can't be printed: %q", shorten(key.Value))
		case twice:
			d.add(at(key), path, "%q is here a second time: it was said in line %d", shorten(key.Value), line)
		default:
			seen[key.Value] = key.Line
			f(key, n.Content[i+1])
		}
	}
	return true
}

// texts reads a map of texts.
func (d *decoder) texts(n *yaml.Node, v reflect.Value, path string, f *shape.Field) {
	if uint64(len(n.Content)/2) > f.Max {
		d.add(at(n), path, "a map of %d keys: %d are allowed", len(n.Content)/2, f.Max)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key, value *yaml.Node) {
		text := reflect.New(v.Type().Elem()).Elem()
		d.value(value, text, path+"."+key.Value, &shape.Field{Max: shape.MaxText})
		v.SetMapIndex(reflect.ValueOf(key.Value), text)
	})
}

// fields reads a map with known keys.
func (d *decoder) fields(n *yaml.Node, v reflect.Value, path string) {
	known := shape.Fields(v.Type())
	names := make([]string, len(known))
	for i := range known {
		names[i] = known[i].Name
	}
	given := map[string]bool{}
	ok := d.pairs(n, path, func(key, value *yaml.Node) {
		i := slices.Index(names, key.Value)
		if i < 0 {
			d.add(at(key), path, "there is no field %q here%s; there are %s", shorten(key.Value), near.Hint(key.Value, names), strings.Join(names, ", "))
			return
		}
		given[key.Value] = true
		d.value(value, v.Field(known[i].Index), join(path, key.Value), &known[i])
	})
	for i := range known {
		if f := &known[i]; ok && f.Required && !given[f.Name] {
			d.add(at(n), path, "%s is missing%s", f.Name, wanted(f))
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
