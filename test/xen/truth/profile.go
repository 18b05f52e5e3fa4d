package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// profile makes the sums of a profile, without the structs that are unclear in the guest.
func (r *Report) profile(path, guestsReport string) error {
	b, err := os.ReadFile(guestsReport)
	if err != nil {
		return err
	}
	var guest struct{ Unclear []uint32 }
	if err := json.Unmarshal(b, &guest); err != nil {
		return err
	}
	unclear := map[uint32]bool{}
	for _, h := range guest.Unclear {
		unclear[h] = true
	}
	p, err := isf.ReadFile(path)
	if err != nil {
		return err
	}
	for i := range p.NumSymbols() {
		s := p.SymbolAt(i)
		r.symbol(s.Name, s.Addr)
	}
	var text bytes.Buffer
	if err := p.WriteJSON(&text); err != nil {
		return err
	}
	var all struct {
		Users map[string]isf.UserType `json:"user_types"`
	}
	if err := json.Unmarshal(text.Bytes(), &all); err != nil {
		return err
	}
	for name, u := range all.Users {
		if unclear[nameHash(name)] || strings.HasPrefix(name, "unnamed_") {
			continue
		}
		var m members
		for field, f := range u.Fields {
			if f.Anonymous {
				field = ""
			}
			off, bits := 8*f.Offset, uint64(0)
			if f.Type.Kind == isf.Bitfield {
				off, bits = off+uint64(f.Type.BitPos), uint64(f.Type.BitLen)
			}
			m.add(field, off, bits)
		}
		r.structure(name, m.text(u.Kind == isf.Union, u.Size))
	}
	return nil
}
