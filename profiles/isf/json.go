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
	"os"
	"strings"

	"github.com/ulikunitz/xz"
)

// document is an ISF file: schema 6.2.0 of Volatility 3.
type document struct {
	Metadata struct {
		Format   string   `json:"format"`
		Producer producer `json:"producer"`
		Linux    *struct {
			Symbols []source `json:"symbols"`
			Types   []source `json:"types"`
		} `json:"linux,omitempty"`
	} `json:"metadata"`
	Base    map[string]BaseType   `json:"base_types"`
	Users   map[string]UserType   `json:"user_types"`
	Enums   map[string]EnumType   `json:"enums"`
	Symbols map[string]symbolJSON `json:"symbols"`
	Funcs   map[string]Func       `json:"hprobe_functions,omitempty"`
}

type producer struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

type source struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	HashType  string `json:"hash_type"`
	HashValue string `json:"hash_value"`
}

type symbolJSON struct {
	Address      uint64 `json:"address"`
	Type         *Type  `json:"type,omitempty"`
	ConstantData string `json:"constant_data,omitempty"`
}

// ReadFile opens a profile: the compact form, or ISF as .json, .json.xz or
// .json.gz. The content decides, not the name.
func ReadFile(path string) (*Profile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	p, err := Read(b)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", path, err)
	}
	return p, nil
}

// Read opens a profile that is in memory. It keeps b.
func Read(b []byte) (*Profile, error) {
	if bytes.HasPrefix(b, magic) {
		return open(b)
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
		r, err = xz.NewReader(bytes.NewReader(b))
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
			return nil, fmt.Errorf("no ISF: %s: a %s where a %s belongs (byte %d)", wrong.Field, wrong.Value, wrong.Type, wrong.Offset)
		}
		return nil, fmt.Errorf("no ISF: %w", err)
	}
	switch major, _, _ := strings.Cut(d.Metadata.Format, "."); major {
	case "4", "5", "6":
	default:
		return nil, fmt.Errorf("metadata.format: ISF %q is not known here: 4.x to 6.x are", d.Metadata.Format)
	}
	out := NewBuilder()
	out.Base, out.Users, out.Enums, out.Funcs = d.Base, d.Users, d.Enums, d.Funcs
	out.Meta.Source = d.Metadata.Producer.Name + " " + d.Metadata.Producer.Version
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

// WriteJSON writes ISF 6.2.0. Of symbols that share a name it has the first
// one: the format knows one address for each.
func (p *Profile) WriteJSON(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	fmt.Fprintf(out, `{"metadata":{"format":"6.2.0","producer":{"name":"hprobe","version":"1"},"linux":{"symbols":[%s],"types":[%s]}}`,
		sourceJSON(p.meta.Source), sourceJSON(p.meta.Source))
	for _, part := range []struct{ kind, name string }{{keyBase, "base_types"}, {keyUser, "user_types"}, {keyEnum, "enums"}, {keyFunc, "hprobe_functions"}} {
		fmt.Fprintf(out, ",%q:{", part.name)
		comma := ""
		err := p.each(part.kind, func(name string, j json.RawMessage) error {
			key, err := json.Marshal(name)
			fmt.Fprintf(out, "%s%s:%s", comma, key, j)
			comma = ","
			return err
		})
		if err != nil {
			return err
		}
		out.WriteByte('}')
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
		key, err := json.Marshal(s.Name)
		if err != nil {
			return err
		}
		value, err := json.Marshal(j)
		if err != nil {
			return err
		}
		if i > 0 {
			out.WriteByte(',')
		}
		fmt.Fprintf(out, "%s:%s", key, value)
		last = s.Name
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

func sourceJSON(name string) []byte {
	j, err := json.Marshal(source{Kind: "vmlinux", Name: name})
	if err != nil {
		panic(err) // strings only
	}
	return j
}
