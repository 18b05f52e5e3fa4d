package isf

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/ulikunitz/xz"
)

// WriteJSON writes ISF 6.2.0. Of symbols that share a name it has the first
// one: the format knows one address for each. What ISF has no word for is below
// metadata.producer, the one place where its schema takes what it does not name.
func (p *Profile) WriteJSON(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	out.WriteString(`{"metadata":{"format":"6.2.0",`)
	source := appendString(nil, p.meta.Source)
	if p.meta.PDB != (PDB{}) {
		fmt.Fprintf(out, `"windows":{"pdb":%s}`, plain(p.meta.PDB))
	} else {
		fmt.Fprintf(out, `"linux":{"symbols":[{"name":%s}],"types":[{"name":%s}]}`, source, source)
	}
	fmt.Fprintf(out, `,"producer":{"name":"hprobe","version":"1.0.0","hprobe":{"source":%s,"build_id":%s,"captured":%s,"functions":`, source, appendString(nil, p.meta.BuildID), appendString(nil, p.meta.Captured))
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
	out.WriteString(`,"symbols":`)
	if err := p.symbolsObject(out); err != nil {
		return err
	}
	out.WriteString("}\n")
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
		fmt.Fprintf(out, "%s%s:%s", comma, appendString(nil, name), j)
		comma = ","
		return nil
	})
	out.WriteByte('}')
	return err
}

// bannerSymbol is the symbol of the line that /proc/version has: by it Volatility finds
// the profile of a dump.
const bannerSymbol = "linux_banner"

// noType is what dwarf2json says of a symbol without one. Volatility makes no object of
// a symbol of which nothing is said, be it only to ask where it is.
var noType = void.json()

func (p *Profile) symbolsObject(out *bufio.Writer) error {
	out.WriteByte('{')
	var line []byte
	last := ""
	for i := range p.NumSymbols() {
		s := p.SymbolAt(i)
		if i > 0 && s.Name == last {
			continue
		}
		line = line[:0]
		if i > 0 {
			line = append(line, ',')
		}
		line = append(appendString(line, s.Name), `:{"address":`...)
		line = strconv.AppendUint(line, s.Addr, 10)
		of, ok := p.find(keyVar + s.Name)
		if !ok {
			of = noType
		} else if !json.Valid(of) {
			return fmt.Errorf("type of %s: the profile is damaged", s.Name)
		}
		line = append(append(line, `,"type":`...), of...)
		if s.Name == bannerSymbol && p.meta.Banner != "" {
			line = append(line, `,"constant_data":"`...)
			line = append(base64.StdEncoding.AppendEncode(line, []byte(p.meta.Banner+"\n\x00")), '"')
		}
		out.Write(append(line, '}'))
		last = s.Name
	}
	out.WriteByte('}')
	return p.failed()
}
