package build

import (
	"bytes"
	"errors"
	"fmt"
)

// What is more than any kernel's types have: they may be a hostile guest's, and what
// decodes them sets few bounds of its own.
const (
	maxTypeName = 1024 // bytes; the kernel itself takes KSYM_NAME_LEN at most, which is 512
	// maxTypeDepth is how far types may lead to others, each of which the decoder comes to
	// for the first time: it goes there by recursion, with 2 KB of stack each. Of Debian's
	// kernels it is some 200.
	maxTypeDepth = 10_000
	// maxTypeText is in bytes of a profile: names count each time that they are used.
	// Debian's kernels have less than 30 MiB.
	maxTypeText = 128 << 20
	// maxModuleText is the same with modules, which are in files of the operator's.
	maxModuleText = 512 << 20
)

var errBTF = errors.New("it is damaged, or no kernel's")

// boundBTF checks that the types of a kernel (include/uapi/linux/btf.h) have names that
// end, and lead to one another no further than maxTypeDepth. That they make sense is
// left to the decoder. The first type has the ID first: 1, and of a module's types the one
// after the kernel's last, which it returns.
func boundBTF(b []byte, first int) (next int, err error) {
	if len(b) < 24 || le.Uint16(b) != 0xeb9f {
		return 0, errBTF
	}
	head := uint64(le.Uint32(b[4:]))
	part := func(at int) []byte {
		off, n := head+uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:]))
		if off+n > uint64(len(b)) {
			return nil
		}
		return b[off : off+n]
	}
	types, strings := part(8), part(16)
	if types == nil || strings == nil {
		return 0, errBTF
	}
	for len(strings) > 0 {
		n := bytes.IndexByte(strings[:min(len(strings), maxTypeName+1)], 0)
		if n < 0 {
			return 0, fmt.Errorf("a name has more than %d bytes: %w", maxTypeName, errBTF)
		}
		strings = strings[n+1:]
	}
	graph, err := readTypeGraph(types)
	if err != nil {
		return 0, err
	}
	graph.from0(uint32(first))
	if graph.deep() {
		return 0, fmt.Errorf("its types lead to one another over %d others: %w", maxTypeDepth, errBTF)
	}
	return first + len(graph.from) - 2, nil
}

// typeGraph says which types lead to which: to[from[i]:from[i+1]] are those of type i,
// in the order in which the decoder follows them.
type typeGraph struct{ from, to []uint32 }

// from0 numbers types whose first ID is first from 1 on; all before are the kernel's, which
// lead to none of a module's: they count as void.
func (g *typeGraph) from0(first uint32) {
	for i, id := range g.to {
		g.to[i] = max(id, first-1) - (first - 1)
	}
}

// Kinds of types, by how they are encoded.
const (
	kindInt, kindPtr, kindArray, kindStruct, kindUnion, kindEnum  = 1, 2, 3, 4, 5, 6
	kindTypedef, kindVolatile, kindConst, kindRestrict, kindFunc  = 8, 9, 10, 11, 12
	kindFuncProto, kindVar, kindDatasec, kindDeclTag, kindTypeTag = 13, 14, 15, 17, 18
	kindEnum64                                                    = 19
)

func readTypeGraph(b []byte) (*typeGraph, error) {
	g := &typeGraph{from: []uint32{0, 0}} // type 0 is void
	var tags [][2]uint32                  // which type, which tag
	for len(b) > 0 {
		if len(b) < 12 {
			return nil, errBTF
		}
		info, ref := le.Uint32(b[4:]), le.Uint32(b[8:])
		kind, n := info>>24&31, int(info&0xffff)
		b = b[12:]
		// The size of each of what follows the head, how many there are, and where in
		// one is a type.
		size, at := 0, -1
		switch kind {
		case kindInt:
			size, n = 4, 1
		case kindArray:
			size, n = 12, 1
		case kindStruct, kindUnion:
			size, at = 12, 4
		case kindEnum:
			size = 8
		case kindFuncProto:
			size, at = 8, 4
		case kindVar, kindDeclTag:
			size, n = 4, 1
		case kindDatasec:
			size, at = 12, 0
		case kindEnum64:
			size = 12
		}
		if size*n > len(b) {
			return nil, errBTF
		}
		switch kind {
		case kindArray: // the type of the index is followed first
			g.to = append(g.to, le.Uint32(b[4:]), le.Uint32(b))
		case kindDeclTag:
			tags = append(tags, [2]uint32{ref, uint32(len(g.from) - 1)})
		}
		for i := 0; at >= 0 && i < n; i++ {
			g.to = append(g.to, le.Uint32(b[size*i+at:]))
		}
		switch kind {
		case kindPtr, kindTypedef, kindVolatile, kindConst, kindRestrict, kindFunc, kindFuncProto, kindVar, kindDeclTag, kindTypeTag:
			g.to = append(g.to, ref)
		}
		g.from = append(g.from, uint32(len(g.to)))
		b = b[size*n:]
	}
	return g.withTags(tags), nil
}

// withTags lets types lead to their tags, after all else.
func (g *typeGraph) withTags(tags [][2]uint32) *typeGraph {
	if len(tags) == 0 {
		return g
	}
	of := map[uint32][]uint32{}
	for _, t := range tags {
		of[t[0]] = append(of[t[0]], t[1])
	}
	all := &typeGraph{from: []uint32{0}}
	for i := range uint32(len(g.from) - 1) {
		all.to = append(append(all.to, g.to[g.from[i]:g.from[i+1]]...), of[i]...)
		all.from = append(all.from, uint32(len(all.to)))
	}
	return all
}

// deep goes the decoder's way, which takes the types one by one and with each all that it
// leads to, and says whether it comes to more than maxTypeDepth within each other.
func (g *typeGraph) deep() bool {
	seen := make([]bool, len(g.from)-1)
	var stack [][2]uint32 // what is next and the end, in to
	for i := range seen {
		for next := uint32(i); ; {
			if int(next) < len(seen) && !seen[next] {
				seen[next] = true
				if stack = append(stack, [2]uint32{g.from[next], g.from[next+1]}); len(stack) > maxTypeDepth {
					return true
				}
			}
			for len(stack) > 0 && stack[len(stack)-1][0] == stack[len(stack)-1][1] {
				stack = stack[:len(stack)-1]
			}
			if len(stack) == 0 {
				break
			}
			top := &stack[len(stack)-1]
			next = g.to[top[0]]
			top[0]++
		}
	}
	return false
}
