package isf

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// decoder reads ISF of the versions 4 to 6, and keeps each type in the compact form as
// soon as it is read. The format is that of Volatility 3: volatility3/schemas, and
// framework/symbols/intermed.py for what is read without being in a schema. What is
// there and not known is skipped.
type decoder struct {
	*scanner
	out    packer
	meta   Meta
	format string
}

// maxEntries is how many symbols, or types of all sorts, a profile may have.
const maxEntries = 1 << 22

func decode(json *scanner) (*Profile, error) {
	d := &decoder{scanner: json}
	if err := d.document(); err != nil {
		return nil, wrongISF(d.where(err))
	}
	if err := d.out.unique(); err != nil {
		return nil, wrongISF(err)
	}
	return d.out.profile(d.meta)
}

func wrongISF(err error) error {
	return fmt.Errorf("no ISF: %w: get the file anew from where it is from, or make one with hprobe profile build", err)
}

func (d *decoder) document() error {
	err := d.object(func(part string) error {
		switch part {
		case "metadata":
			return d.metadata()
		case "base_types":
			return d.object(d.baseType)
		case "user_types":
			return d.object(d.userType)
		case "enums":
			return d.object(d.enum)
		case "symbols":
			return d.object(d.symbol)
		}
		return d.json.SkipValue()
	})
	if err != nil {
		return err
	}
	switch major, _, _ := strings.Cut(d.format, "."); major {
	case "4", "5", "6":
	case "":
		return errors.New("no metadata.format")
	default:
		return fmt.Errorf("metadata.format: ISF %s is not known here: 4.x to 6.x are", quoted(d.format))
	}
	if _, err := d.json.ReadToken(); !errors.Is(err, io.EOF) {
		return cmp.Or(err, errors.New("there is more behind its end"))
	}
	return nil
}

func (d *decoder) metadata() error {
	var name, version string
	var own bool
	err := d.object(func(part string) (err error) {
		switch part {
		case "format":
			d.format, err = d.str()
		case "windows":
			err = d.windows()
		case "producer":
			err = d.object(func(part string) (err error) {
				switch part {
				case "name":
					name, err = d.str()
				case "version":
					version, err = d.str()
				case "hprobe":
					own, err = true, d.extension()
				default:
					err = d.json.SkipValue()
				}
				return err
			})
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if pdb := d.meta.PDB; !own && pdb != (PDB{}) {
		d.meta.BuildID = fmt.Sprintf("%s-%d", strings.ToLower(pdb.GUID), pdb.Age)
		name, version = pdb.Database, ""
	}
	if !own {
		d.meta.Source = strings.TrimSpace(name + " " + version)
	}
	return err
}

func (d *decoder) windows() error {
	return d.object(func(part string) error {
		if part != "pdb" {
			return d.json.SkipValue()
		}
		return d.object(func(part string) (err error) {
			switch part {
			case "database":
				d.meta.PDB.Database, err = d.str()
			case "GUID":
				d.meta.PDB.GUID, err = d.str()
			case "age":
				d.meta.PDB.Age, err = d.uint(1 << 53)
			case "machine_type":
				d.meta.PDB.Machine, err = d.uint(1 << 53)
			default:
				err = d.json.SkipValue()
			}
			return err
		})
	})
}

// extension is what hprobe adds.
func (d *decoder) extension() error {
	return d.object(func(part string) (err error) {
		switch part {
		case "source":
			d.meta.Source, err = d.str()
		case "build_id":
			d.meta.BuildID, err = d.str()
		case "captured":
			d.meta.Captured, err = d.str()
		case "functions":
			err = d.object(d.function)
		default:
			err = d.json.SkipValue()
		}
		return err
	})
}

func (d *decoder) keep(key string, json []byte) error {
	if len(d.out.entries) >= maxEntries {
		return fmt.Errorf("more than %d types", maxEntries)
	}
	d.out.entry(key, json)
	return nil
}

func (d *decoder) baseType(name string) error {
	var t BaseType
	var has missing
	err := d.object(func(part string) (err error) {
		has.add(part)
		switch part {
		case "kind":
			if t.Kind, err = d.str(); err == nil && !slices.Contains(baseKinds, t.Kind) {
				err = fmt.Errorf("%q is no kind of base type (%s)", t.Kind, strings.Join(baseKinds, ", "))
			}
		case "size":
			t.Size, err = d.uint(MaxSize)
		case "signed":
			t.Signed, err = d.bool()
		case "endian":
			if t.Endian, err = d.str(); err == nil && t.Endian != "little" && t.Endian != "big" {
				err = fmt.Errorf("%q is neither little nor big", t.Endian)
			}
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if err := cmp.Or(err, has.not("kind", "size", "signed", "endian")); err != nil {
		return err
	}
	return d.keep(keyBase+name, t.json())
}

var baseKinds = []string{"void", "int", "float", "char", "bool"}

func (d *decoder) userType(name string) error {
	u := UserType{Fields: map[string]Field{}}
	var has missing
	err := d.object(func(part string) (err error) {
		has.add(part)
		switch part {
		case "kind":
			var kind string
			kind, err = d.str()
			if u.Kind = Kind(kind); err == nil && u.Kind != Struct && u.Kind != Union && u.Kind != Class {
				err = fmt.Errorf("%q is no kind of user type (struct, union, class)", kind)
			}
		case "size":
			u.Size, err = d.uint(maxTypeSize)
		case "fields":
			err = d.object(func(field string) error { return d.field(&u, field) })
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if err := cmp.Or(err, has.not("kind", "size", "fields")); err != nil {
		return err
	}
	return d.keep(keyUser+name, u.json())
}

// maxTypeSize is how large a type may be, in bytes: no address of a kernel's is further off.
const maxTypeSize = 1 << 47

func (d *decoder) field(of *UserType, name string) error {
	if _, ok := of.Fields[name]; ok {
		return errTwice
	}
	if len(of.Fields) >= maxMembers {
		return fmt.Errorf("more than %d members", maxMembers)
	}
	var f Field
	var has missing
	err := d.object(func(part string) (err error) {
		has.add(part)
		switch part {
		case "offset":
			f.Offset, err = d.uint(maxTypeSize)
		case "type":
			f.Type, err = d.typ(0)
		case "anonymous":
			f.Anonymous, err = d.bool()
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if err := cmp.Or(err, has.not("offset", "type")); err != nil {
		return err
	}
	// dwarf2json names them so, and before ISF 6.2 there was no other sign.
	f.Anonymous = f.Type.aggregate() && (f.Anonymous || strings.HasPrefix(name, "unnamed_field_"))
	of.Fields[name] = f
	return nil
}

var errTwice = errors.New("it is there twice")

func (d *decoder) enum(name string) error {
	t := EnumType{Constants: map[string]int64{}}
	var has missing
	err := d.object(func(part string) (err error) {
		has.add(part)
		switch part {
		case "base":
			t.Base, err = d.str()
		case "size":
			t.Size, err = d.uint(MaxSize)
		case "constants":
			err = d.object(func(name string) error {
				if _, ok := t.Constants[name]; ok {
					return errTwice
				}
				if len(t.Constants) >= maxMembers {
					return fmt.Errorf("more than %d constants", maxMembers)
				}
				v, err := d.word()
				t.Constants[name] = int64(v)
				return err
			})
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if err := cmp.Or(err, has.not("base", "size", "constants")); err != nil {
		return err
	}
	return d.keep(keyEnum+name, t.json())
}

func (d *decoder) symbol(name string) error {
	if len(d.out.symbols) >= maxEntries {
		return fmt.Errorf("more than %d symbols", maxEntries)
	}
	s := Symbol{Name: name}
	var of Type
	var has missing
	err := d.object(func(part string) (err error) {
		has.add(part)
		switch part {
		case "address":
			s.Addr, err = d.word()
		case "type":
			of, err = d.typ(0)
		case "constant_data":
			err = d.constant(name)
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if err := cmp.Or(err, has.not("address")); err != nil {
		return err
	}
	d.out.symbols = append(d.out.symbols, s)
	if of == (Type{}) || of == void { // dwarf2json says void of what it knows nothing of
		return nil
	}
	return d.keep(keyVar+name, of.json())
}

// constant is a symbol's memory, as far as it is known and never changes.
func (d *decoder) constant(name string) error {
	text, err := d.str()
	if err != nil || name != bannerSymbol {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(text)
	d.meta.Banner = strings.TrimRight(string(data), "\n\x00")
	return err
}

func (d *decoder) function(name string) error {
	f := Func{Return: void}
	err := d.object(func(part string) (err error) {
		switch part {
		case "params":
			err = d.array(func() error {
				if len(f.Params) >= maxMembers {
					return fmt.Errorf("more than %d parameters", maxMembers)
				}
				p, err := d.param()
				f.Params = append(f.Params, p)
				return err
			})
		case "return":
			f.Return, err = d.typ(0)
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.keep(keyFunc+name, f.json())
}

func (d *decoder) param() (p Param, err error) {
	var has missing
	err = d.object(func(part string) (err error) {
		has.add(part)
		switch part {
		case "name":
			p.Name, err = d.str()
		case "type":
			p.Type, err = d.typ(0)
		default:
			err = d.json.SkipValue()
		}
		return err
	})
	return p, cmp.Or(err, has.not("type"))
}

// kinds of types, and what each must have.
var kinds = map[Kind][]string{
	Base: {"name"}, Struct: {"name"}, Union: {"name"}, Class: {"name"}, Enum: {"name"},
	Pointer: {"subtype"}, Array: {"count", "subtype"}, Bitfield: {"bit_length", "bit_position", "type"}, Function: nil,
}

func (d *decoder) typ(depth int) (t Type, err error) {
	if depth > maxDepth {
		return t, fmt.Errorf("a type in more than %d others", maxDepth)
	}
	var has missing
	err = d.object(func(part string) error {
		has.add(part)
		return d.typePart(&t, part, depth)
	})
	return t, cmp.Or(err, has.not("kind"), has.not(kinds[t.Kind]...))
}

func (d *decoder) typePart(t *Type, part string, depth int) (err error) {
	var n uint64
	switch part {
	case "kind":
		var kind string
		kind, err = d.str()
		t.Kind = Kind(kind)
		if _, ok := kinds[t.Kind]; err == nil && !ok {
			err = fmt.Errorf("%q is no kind of type (%s)", kind, allKinds())
		}
	case "name":
		t.Name, err = d.str()
	case "base":
		t.Base, err = d.str()
	case "count":
		t.Count, err = d.uint(maxTypeSize)
	case "bit_length":
		n, err = d.uint(128)
		t.BitLen = uint8(n)
	case "bit_position":
		n, err = d.uint(127)
		t.BitPos = uint8(n)
	case "subtype":
		t.Subtype = new(Type)
		*t.Subtype, err = d.typ(depth + 1)
	case "type":
		t.BitsType = new(Type)
		*t.BitsType, err = d.typ(depth + 1)
	default:
		err = d.json.SkipValue()
	}
	return err
}

func allKinds() string {
	var all []string
	for k := range kinds {
		all = append(all, string(k))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// missing knows which parts an object has: the first, and of no object that is known there
// are more.
type missing struct {
	has [8]string
	n   int
}

func (m *missing) add(part string) {
	if m.n < len(m.has) {
		m.has[m.n] = part
		m.n++
	}
}

// not is an error if one of these is not there.
func (m *missing) not(parts ...string) error {
	for _, part := range parts {
		if !slices.Contains(m.has[:m.n], part) {
			return fmt.Errorf("no %q", part)
		}
	}
	return nil
}
