package isf

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// What a profile keeps of a type is its JSON as ISF's schema wants it. These append it
// to b. It is not left to encoding/json: what is zero and must be there depends on the
// kind, and of a kernel's members there are some hundred thousand.

// MarshalJSON writes what ISF's schema wants of each kind: a count of 0 (a
// flexible array) and a bit position of 0 must be there.
func (t Type) MarshalJSON() ([]byte, error) { return t.append(nil), nil }

func (t *Type) append(b []byte) []byte {
	if t.Kind == "" {
		t = &void
	}
	b = appendString(append(b, `{"kind":`...), string(t.Kind))
	switch t.Kind {
	case Pointer:
		b = t.Subtype.appendAs(b, "subtype")
		if t.Base != "" {
			b = appendString(append(b, `,"base":`...), t.Base)
		}
	case Array:
		b = strconv.AppendUint(append(b, `,"count":`...), t.Count, 10)
		b = t.Subtype.appendAs(b, "subtype")
	case Bitfield:
		b = strconv.AppendUint(append(b, `,"bit_length":`...), uint64(t.BitLen), 10)
		b = strconv.AppendUint(append(b, `,"bit_position":`...), uint64(t.BitPos), 10)
		b = t.BitsType.appendAs(b, "type")
	case Function:
	default:
		b = appendString(append(b, `,"name":`...), t.Name)
	}
	return append(b, '}')
}

// void is what is behind a pointer that says nothing of it.
var void = Type{Kind: Base, Name: "void"}

func (t *Type) appendAs(b []byte, name string) []byte {
	b = append(append(append(b, `,"`...), name...), `":`...)
	if t == nil {
		t = &void
	}
	return t.append(b)
}

func (t *Type) json() []byte { return t.append(nil) }

func (u *UserType) json() []byte {
	b := appendString([]byte(`{"kind":`), string(u.Kind))
	b = strconv.AppendUint(append(b, `,"size":`...), u.Size, 10)
	b = append(b, `,"fields":{`...)
	for i, name := range slices.Sorted(maps.Keys(u.Fields)) {
		f := u.Fields[name]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, name), `:{"offset":`...)
		b = strconv.AppendUint(b, f.Offset, 10)
		b = f.Type.append(append(b, `,"type":`...))
		if f.Anonymous {
			b = append(b, `,"anonymous":true`...)
		}
		b = append(b, '}')
	}
	return append(b, "}}"...)
}

func (t *BaseType) json() []byte { return plain(t) }

func (t *EnumType) json() []byte { return plain(t) }

func (f *Func) json() []byte {
	b := []byte(`{"params":[`)
	for i := range f.Params {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"name":`...), f.Params[i].Name)
		b = append(f.Params[i].Type.append(append(b, `,"type":`...)), '}')
	}
	return append(f.Return.append(append(b, `],"return":`...)), '}')
}

func (m *Meta) json() []byte { return plain(m) }

// plain is what encoding/json makes of something.
func plain(v any) []byte {
	j, err := json.Marshal(v)
	if err != nil {
		panic(err) // of what has only strings and numbers there is none
	}
	return j
}

// appendString appends a string as JSON has it. Bytes that are no UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
