package isf

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	bounded "github.com/mikelolasagasti/xz"
	"github.com/ulikunitz/xz"
)

// document is an ISF file: schema 6.2.0 of Volatility 3.
type document struct {
	Metadata struct {
		Format   string   `json:"format"`
		Producer producer `json:"producer"`
	} `json:"metadata"`
	Base    map[string]BaseType   `json:"base_types"`
	Users   map[string]UserType   `json:"user_types"`
	Enums   map[string]EnumType   `json:"enums"`
	Symbols map[string]symbolJSON `json:"symbols"`
}

// producer is the one place where the schema takes what it does not name: what
// ISF has no word for is there.
type producer struct {
	Name    string     `json:"name"`
	Version string     `json:"version"`
	Hprobe  *extension `json:"hprobe"`
}

type extension struct {
	Source    string          `json:"source"`
	BuildID   string          `json:"build_id"`
	Functions map[string]Func `json:"functions"`
}

type symbolJSON struct {
	Address      uint64 `json:"address"`
	Type         *Type  `json:"type,omitempty"`
	ConstantData string `json:"constant_data,omitempty"`
}

// Read opens a profile that is in memory. It keeps b.
func Read(b []byte) (*Profile, error) {
	if bytes.HasPrefix(b, magic) {
		return open(inMemory(b))
	}
	plain, err := unpack(b)
	if err != nil {
		return nil, err
	}
	return readJSON(plain)
}

func unpack(b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		// This one bounds the dictionary, which the file's head sizes.
		r, err = bounded.NewReader(bytes.NewReader(b), bounded.DefaultDictMax)
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		r, err = gzip.NewReader(bytes.NewReader(b))
	default:
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if len(plain) > MaxSize {
		return nil, fmt.Errorf("unpack: more than %d bytes", MaxSize)
	}
	return plain, nil
}

func readJSON(b []byte) (*Profile, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		var syntax *json.SyntaxError
		var wrong *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return nil, fmt.Errorf("no ISF: at byte %d: %w", syntax.Offset, err)
		case errors.As(err, &wrong):
			return nil, fmt.Errorf("no ISF: %s: a %s where a %s belongs (byte %d)", path(b, wrong), wrong.Value, wrong.Type, wrong.Offset)
		}
		return nil, fmt.Errorf("no ISF: %w", err)
	}
	switch major, _, _ := strings.Cut(d.Metadata.Format, "."); major {
	case "4", "5", "6":
	default:
		return nil, fmt.Errorf("metadata.format: ISF %q is not known here: 4.x to 6.x are", d.Metadata.Format)
	}
	out := NewBuilder()
	out.Base, out.Users, out.Enums = d.Base, d.Users, d.Enums
	made := d.Metadata.Producer
	out.Meta.Source = strings.TrimSpace(made.Name + " " + made.Version)
	if own := made.Hprobe; own != nil {
		out.Meta.Source, out.Meta.BuildID, out.Funcs = own.Source, own.BuildID, own.Functions
	}
	for name, s := range d.Symbols {
		out.Symbols = append(out.Symbols, Symbol{name, s.Address})
		if name == "linux_banner" && s.ConstantData != "" {
			text, err := base64.StdEncoding.DecodeString(s.ConstantData)
			if err != nil {
				return nil, fmt.Errorf("symbols.linux_banner.constant_data: %w", err)
			}
			out.Meta.Banner = strings.TrimRight(string(text), "\n\x00")
		}
	}
	return out.Profile()
}

// path says where in a document an error is, with the names of types and
// symbols, which the decoder leaves out.
func path(b []byte, wrong *json.UnmarshalTypeError) string {
	var parts map[string]json.RawMessage
	if json.Unmarshal(b, &parts) != nil {
		return "the document"
	}
	for _, part := range []struct {
		name string
		one  func() any
	}{
		{"base_types", func() any { return new(BaseType) }}, {"user_types", func() any { return new(UserType) }},
		{"enums", func() any { return new(EnumType) }}, {"symbols", func() any { return new(symbolJSON) }},
	} {
		var all map[string]json.RawMessage
		if json.Unmarshal(parts[part.name], &all) != nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			var inner *json.UnmarshalTypeError
			if errors.As(json.Unmarshal(all[name], part.one()), &inner) {
				return strings.TrimSuffix(fmt.Sprintf("%s.%q.%s", part.name, name, inner.Field), ".")
			}
		}
	}
	if wrong.Field == "" {
		return "the document"
	}
	return wrong.Field
}

// WriteJSON writes ISF 6.2.0. Of symbols that share a name it has the first
// one: the format knows one address for each.
func (p *Profile) WriteJSON(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	source, buildID := text(p.meta.Source), text(p.meta.BuildID)
	fmt.Fprintf(out, `{"metadata":{"format":"6.2.0","linux":{"symbols":[{"name":%s}],"types":[{"name":%s}]},"producer":{"name":"hprobe","version":"1.0.0","hprobe":{"source":%s,"build_id":%s,"functions":`,
		source, source, source, buildID)
	if err := p.object(out, keyFunc); err != nil {
		return err
	}
	out.WriteString("}}}")
	for _, part := range []struct{ kind, name string }{{keyBase, "base_types"}, {keyUser, "user_types"}, {keyEnum, "enums"}} {
		fmt.Fprintf(out, ",%q:", part.name)
		if err := p.object(out, part.kind); err != nil {
			return err
		}
	}
	out.WriteString(`,"symbols":{`)
	last := ""
	for i := range p.NumSymbols() {
		s := p.SymbolAt(i)
		if i > 0 && s.Name == last {
			continue
		}
		j := symbolJSON{Address: s.Addr}
		if s.Name == "linux_banner" {
			j.ConstantData = base64.StdEncoding.EncodeToString([]byte(p.meta.Banner + "\n\x00"))
		}
		value, err := json.Marshal(j)
		if err != nil {
			return err
		}
		if i > 0 {
			out.WriteByte(',')
		}
		fmt.Fprintf(out, "%s:%s", text(s.Name), value)
		last = s.Name
	}
	if err := p.failed(); err != nil {
		return err
	}
	out.WriteString("}}\n")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write ISF: %w", err)
	}
	return nil
}

// WriteJSONXZ is WriteJSON, packed as Volatility's own files are.
func (p *Profile) WriteJSONXZ(w io.Writer) error {
	x, err := xz.NewWriter(w)
	if err != nil {
		return fmt.Errorf("write ISF: %w", err)
	}
	return errors.Join(p.WriteJSON(x), x.Close())
}

// object writes all entries of a kind as one JSON object.
func (p *Profile) object(out *bufio.Writer, kind string) error {
	out.WriteByte('{')
	comma := ""
	err := p.each(kind, func(name string, j json.RawMessage) error {
		if !json.Valid(j) {
			return fmt.Errorf("%s: the profile is damaged", name)
		}
		fmt.Fprintf(out, "%s%s:%s", comma, text(name), j)
		comma = ","
		return nil
	})
	out.WriteByte('}')
	return err
}

// text is a string as JSON has it.
func text(s string) []byte {
	j, err := json.Marshal(s)
	if err != nil {
		panic(err) // of a string there is none
	}
	return j
}
