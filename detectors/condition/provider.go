package condition

import (
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/hprobe/hprobe/profiles/isf"
)

// provider gives CEL the profile's structs and enumerations.
type provider struct {
	types.Provider // CEL's own types
	profile        *isf.Profile
	view           *view
	fields         map[[2]string]*types.FieldType // those that were asked for
	shapes         map[[2]string]*shape
}

func newProvider(p *isf.Profile, v *view) *provider {
	return &provider{Provider: types.NewEmptyRegistry(), profile: p, view: v, fields: map[[2]string]*types.FieldType{}, shapes: map[[2]string]*shape{}}
}

// EnumValue resolves pid_type.PIDTYPE_TGID.
func (p *provider) EnumValue(name string) ref.Val {
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		if e, err := p.profile.EnumType(name[:i]); err == nil {
			if v, ok := e.Constants[name[i+1:]]; ok {
				return types.Int(v)
			}
		}
	}
	return p.Provider.EnumValue(name)
}

// FindStructType knows the profile's structs.
func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if _, err := p.profile.UserType(name); err == nil {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldNames lists the members that an expression may name.
func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	names := map[string]bool{}
	p.names(name, names, map[string]bool{})
	if len(names) == 0 {
		return p.Provider.FindStructFieldNames(name)
	}
	var all []string
	for n := range names {
		all = append(all, n)
	}
	slices.Sort(all)
	return all, true
}

// maxFields bounds what a hostile profile may have.
const maxFields = 4096

func (p *provider) names(of string, names, seen map[string]bool) {
	u, err := p.profile.UserType(of)
	if err != nil || seen[of] {
		return
	}
	seen[of] = true
	for n, f := range u.Fields {
		switch {
		case len(names) >= maxFields || len(seen) > 64:
			return
		case f.Anonymous:
			p.names(f.Type.Name, names, seen)
		default:
			names[n] = true
		}
	}
}

// FindStructFieldType gives CEL a field with its place: a path costs no look-up
// when it is evaluated.
func (p *provider) FindStructFieldType(of, field string) (*types.FieldType, bool) {
	key := [2]string{of, field}
	if f, ok := p.fields[key]; ok {
		return f, true
	}
	s, offset, ok := p.field(of, field)
	if !ok {
		return p.Provider.FindStructFieldType(of, field)
	}
	f := &types.FieldType{
		Type:  s.cel,
		IsSet: func(any) bool { return true }, // C has no fields that are not there
		GetFrom: func(target any) (any, error) {
			o, ok := target.(*object)
			if !ok {
				return nil, errNull
			}
			v, err := s.load(o.view, o.at+offset)
			if err != nil {
				return nil, err
			}
			return v, nil
		},
	}
	p.fields[key] = f
	return f, true
}

// field finds a member and how it is to be read.
func (p *provider) field(of, field string) (*shape, uint64, bool) {
	at, err := p.profile.Field(of, field)
	if err != nil {
		return nil, 0, false
	}
	s, ok := p.shape(at.Type, 0)
	return s, at.Offset, ok
}

// NewValue refuses: nobody makes structs in a condition.
func (p *provider) NewValue(string, map[string]ref.Val) ref.Val {
	return types.WrapErr(errNoConversion)
}
