package isf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// packer makes a profile: the compact form, in memory, of what it is given in any order.
type packer struct {
	text    pile
	symbols []Symbol
	entries []entry
}

// entry is one of the types table: where its JSON is in the text.
type entry struct {
	key    string
	at, to int64
}

func (k *packer) entry(key string, json []byte) {
	at := k.text.n
	k.text.write(json)
	k.entries = append(k.entries, entry{key, at, k.text.n})
}

// unique says which symbol or type, of what is in ISF, is there twice.
func (k *packer) unique() error {
	slices.SortFunc(k.symbols, func(x, y Symbol) int { return strings.Compare(x.Name, y.Name) })
	for i := range k.symbols {
		if i > 0 && k.symbols[i-1].Name == k.symbols[i].Name {
			return fmt.Errorf("symbols.%s: %w", quoted(k.symbols[i].Name), errTwice)
		}
	}
	slices.SortFunc(k.entries, func(x, y entry) int { return strings.Compare(x.key, y.key) })
	for i := range k.entries {
		if key := k.entries[i].key; i > 0 && k.entries[i-1].key == key {
			part := map[string]string{keyBase: "base_types", keyUser: "user_types", keyEnum: "enums", keyFunc: "metadata.producer.hprobe.functions"}[key[:1]]
			return fmt.Errorf("%s.%s: %w", part, quoted(key[1:]), errTwice)
		}
	}
	return nil
}

// profile ends it.
func (k *packer) profile(meta Meta) (*Profile, error) {
	k.entry(keyMeta, meta.json())
	p := &Profile{meta: meta, symbols: k.packSymbols(), types: k.packEntries()}
	p.names = k.packNames()
	p.addrs, p.byAddr = k.packAddresses()
	p.text = k.text.part()
	size := int64(headerSize)
	for _, part := range p.parts() {
		size += part.n
	}
	if size > MaxSize {
		return nil, fmt.Errorf("profile: %d bytes are too many", size)
	}
	return p, nil
}

// str writes text, and an entry's reference to it.
func (k *packer) str(to *pile, s string) {
	k.ref(to, k.text.n, int64(len(s)))
	k.text.write([]byte(s))
}

func (k *packer) ref(to *pile, at, n int64) {
	to.write(le.AppendUint32(le.AppendUint32(nil, uint32(at)), uint32(n)))
}

// packSymbols sorts them by name, those of one name by address, each once.
func (k *packer) packSymbols() part {
	slices.SortFunc(k.symbols, func(x, y Symbol) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), cmp.Compare(x.Addr, y.Addr))
	})
	k.symbols = slices.Compact(k.symbols)
	var to pile
	for _, s := range k.symbols {
		k.str(&to, s.Name)
		to.write(le.AppendUint64(nil, s.Addr))
	}
	return to.part()
}

func (k *packer) packEntries() part {
	slices.SortFunc(k.entries, func(x, y entry) int { return strings.Compare(x.key, y.key) })
	var to pile
	for _, e := range k.entries {
		k.str(&to, e.key)
		k.ref(&to, e.at, e.to-e.at)
	}
	return to.part()
}

// packNames leaves at least a fifth of the slots empty.
func (k *packer) packNames() part {
	n := 2
	for n < len(k.symbols)+len(k.symbols)/4 {
		n *= 2
	}
	slots := make([]uint64, n)
	for i, s := range k.symbols {
		if i > 0 && k.symbols[i-1].Name == s.Name {
			continue
		}
		hash := hashOf(s.Name)
		at := int(hash) & (n - 1)
		for slots[at] != 0 {
			at = (at + 1) & (n - 1)
		}
		slots[at] = hash>>32<<32 | uint64(i+1)
	}
	var to pile
	for _, s := range slots {
		to.write(le.AppendUint64(nil, s))
	}
	return to.part()
}

func (k *packer) packAddresses() (addrs, byAddr part) {
	order := make([]uint32, len(k.symbols))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(x, y uint32) int {
		return cmp.Or(cmp.Compare(k.symbols[x].Addr, k.symbols[y].Addr), cmp.Compare(x, y))
	})
	var to, index pile
	for _, i := range order {
		to.write(le.AppendUint64(nil, k.symbols[i].Addr))
		index.write(le.AppendUint32(nil, i))
	}
	return to.part(), index.part()
}
