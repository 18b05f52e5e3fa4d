package isf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Check reads all of a profile, and says what is wrong with it: look-ups find that out
// only of what they look up.
func (p *Profile) Check() error {
	if p.meta.Banner == "" {
		return errors.New("it has no banner of a Linux kernel (linux_banner): it is of another system, or was made without")
	}
	last := ""
	for i := range p.NumSymbols() {
		e := p.symbols.bytes(i*symbolSize, symbolSize)
		name := string(p.str(e))
		if name == "" || name < last {
			return errors.Join(p.failed(), fmt.Errorf("symbol %d, %q: it has no name, or is out of order", i, name))
		}
		last = name
		if n := p.byAddr.bytes(4*i, 4); n == nil || int(le.Uint32(n)) >= p.NumSymbols() {
			return errors.Join(p.failed(), fmt.Errorf("the order of symbols by address is damaged at %d", i))
		}
	}
	last = ""
	for i := range p.types.len() / typeSize {
		e := p.types.bytes(i*typeSize, typeSize)
		key := string(p.str(e))
		if key == "" || key < last {
			return errors.Join(p.failed(), fmt.Errorf("type %d, %q: it has no name, or is out of order", i, key))
		}
		last = key
		if err := checkEntry(key, p.str(e[8:])); err != nil {
			return errors.Join(p.failed(), fmt.Errorf("%q: %w", key[1:], err))
		}
	}
	return p.failed()
}

func checkEntry(key string, j []byte) error {
	to, ok := map[string]any{keyMeta: &Meta{}, keyBase: &BaseType{}, keyUser: &UserType{}, keyEnum: &EnumType{}, keyFunc: &Func{}, keyVar: &Type{}}[key[:1]]
	if !ok {
		return fmt.Errorf("there are no types of kind %q", key[:1])
	}
	return json.NewDecoder(bytes.NewReader(j)).Decode(to)
}
