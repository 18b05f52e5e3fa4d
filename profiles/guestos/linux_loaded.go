package guestos

import (
	"context"
	"errors"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// LoadedModule is a module as /proc/modules has it. What it says is the guest's.
type LoadedModule struct {
	Name  string // quote it
	State string // "Live", "Loading", "Unloading"
	Base  uint64 // of its code
	Size  uint64 // of all its memory, in bytes
	Refs  int32  // by how much it is in use
	// Users are the modules that use it; quote them.
	Users []string
	// Taints are the letters of why it taints the kernel: O of another source tree, E
	// unsigned, …
	Taints string
	// Why says what of it could not be read; "" is nothing.
	Why string
}

// The kernel's own bounds of what is listed of a module.
const (
	maxUsers  = 256
	maxTaints = 64
)

// loadedLayout is where the kernel keeps what moduleLayout has not.
type loadedLayout struct {
	err error

	refs, taints, users   uint64
	userLink, userOf      uint64 // in a struct module_use
	pieces                []span // of its memory
	flags, flagSize, flag uint64 // of the table of taints
	states                map[uint32]string
}

func (k *Kernel) loadedModules() (*loadedLayout, error) {
	k.loadedOnce.Do(func() { k.loaded.err = k.findLoadedLayout(&k.loaded) })
	return &k.loaded, k.loaded.err
}

func (k *Kernel) findLoadedLayout(l *loadedLayout) error {
	if _, err := k.modules(); err != nil {
		return err
	}
	if err := k.locate(want(&l.refs, "module", "refcnt"), want(&l.taints, "module", "taints"), want(&l.users, "module", "source_list"),
		want(&l.userLink, "module_use", "source_list"), want(&l.userOf, "module_use", "source"), want(&l.flag, "taint_flag", "c_true")); err != nil {
		return err
	}
	flags, err := k.Address("taint_flags")
	if err != nil {
		return err
	}
	l.flags = uint64(flags)
	if l.flagSize, err = k.Profile.SizeOf(isf.Type{Kind: isf.Struct, Name: "taint_flag"}); err != nil {
		return err
	}
	l.states = map[uint32]string{}
	for name, text := range map[string]string{"LIVE": "Live", "COMING": "Loading", "GOING": "Unloading"} {
		n, err := k.constant("module_state", "MODULE_STATE_"+name)
		if err != nil {
			return err
		}
		l.states[n] = text
	}
	return k.findModulePieces(l)
}

// findModulePieces finds where a module notes its memory: see findModuleText.
func (k *Kernel) findModulePieces(l *loadedLayout) error {
	mem, err := k.Profile.Field("module", "mem")
	if errors.Is(err, isf.ErrNotFound) {
		for _, of := range []string{"core_layout", "init_layout"} {
			piece, err := k.span("module", of+".base", of+".size", 0)
			if err != nil {
				return err
			}
			l.pieces = append(l.pieces, piece)
		}
		return nil
	}
	if err != nil {
		return err
	}
	size, err := k.Profile.SizeOf(*mem.Type.Subtype) // findModuleText has looked at it
	if err != nil {
		return err
	}
	for i := range min(mem.Type.Count, 16) {
		piece, err := k.span(mem.Type.Subtype.Name, "base", "size", mem.Offset+i*size)
		if err != nil {
			return err
		}
		l.pieces = append(l.pieces, piece)
	}
	return nil
}

// Loaded reads the guest's list of modules, in its order, as Statuses reads that of
// processes.
func (k *Kernel) Loaded(ctx context.Context) ([]LoadedModule, error) {
	l, err := k.loadedModules()
	if err != nil {
		return nil, err
	}
	var r reasons
	modules := &k.layout
	all, err := (&list[*LoadedModule]{k: k, what: "the list of modules", head: modules.head, limit: maxModules,
		read: func(node uint64) (*LoadedModule, error) { return k.loadedAt(ctx, l, &r, node-modules.list) },
		same: func(node uint64, was *LoadedModule) bool {
			name, err := k.text(node-modules.list+modules.name, maxModuleName)
			return err == nil && (was == nil || was.Name == name)
		}}).all(ctx, &r)
	if err != nil {
		return nil, err
	}
	var formed []LoadedModule
	for _, m := range all {
		if m == nil { // it is not in place yet, and /proc/modules leaves it out
			continue
		}
		if m.Why != "" {
			r.add("of module %q: %s", m.Name, m.Why)
		}
		formed = append(formed, *m)
	}
	return formed, r.err()
}

// loadedAt reads a struct module; nil is one that is being made.
func (k *Kernel) loadedAt(ctx context.Context, l *loadedLayout, r *reasons, at uint64) (m *LoadedModule, err error) {
	state, err := k.read32(at + k.layout.state)
	if err != nil || state == k.layout.unformed {
		return nil, err
	}
	m = &LoadedModule{State: l.states[state]}
	if m.Name, err = k.text(at+k.layout.name, maxModuleName); err != nil {
		return nil, err
	}
	if m.Base, err = k.read64(at + k.layout.text.base); err != nil {
		return nil, err
	}
	for _, p := range l.pieces {
		n, err := k.read32(at + p.size)
		if err != nil {
			return nil, err
		}
		m.Size += uint64(n)
	}
	refs, err := k.read32(at + l.refs)
	if err != nil {
		return nil, err
	}
	m.Refs = int32(refs - 1) // MODULE_REF_BASE: the kernel's own
	if m.Taints, err = k.taintsOf(l, at); err != nil {
		return nil, err
	}
	own := reasons{waited: r.waited}
	users, err := (&list[string]{k: k, what: "the list of its users", head: at + l.users, limit: maxUsers,
		read: func(node uint64) (string, error) {
			user, err := k.read64(node - l.userLink + l.userOf)
			if err != nil {
				return "", err
			}
			return k.text(user+k.layout.name, maxModuleName)
		},
		same: func(uint64, string) bool { return true }}).all(ctx, &own)
	if err != nil {
		return nil, err
	}
	r.waited, m.Users, m.Why = own.waited, users, strings.Join(own.Why, ", ")
	return m, nil
}

func (k *Kernel) taintsOf(l *loadedLayout, at uint64) (string, error) {
	bits, err := k.read64(at + l.taints)
	if err != nil {
		return "", err
	}
	var text []byte
	for i := range uint64(maxTaints) {
		if bits>>i&1 == 0 {
			continue
		}
		letter, err := k.read32(l.flags + i*l.flagSize + l.flag)
		if err != nil {
			return "", err
		}
		if c := byte(letter); c >= 'A' && c <= 'Z' { // the others are behind the table
			text = append(text, c)
		}
	}
	return string(text), nil
}
