package condition

import (
	"container/list"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// maxKeys bounds how many keys are counted at a time: an attacker may make them up.
const maxKeys = 4096

// key is the value of a key expression: comparable, and made without a detour over
// text where it is a number.
type key struct {
	kind byte
	n    uint64
	s    string
}

func keyOf(v ref.Val) (key, bool) {
	switch v := v.(type) {
	case types.Int:
		return key{kind: 'i', n: uint64(v)}, true
	case types.Uint:
		return key{kind: 'i', n: uint64(v)}, true
	case types.Bool:
		return key{kind: 'b', n: map[types.Bool]uint64{true: 1}[v]}, true
	case types.String:
		return key{kind: 's', s: strings.Clone(string(v)[:min(len(v), 256)])}, true
	case types.Null:
		return key{kind: 'n'}, true
	case *object:
		return key{kind: 'o', n: v.at}, true
	}
	return key{}, false
}

// Counter counts by key. Where there are too many keys the one goes that was not
// seen for the longest time. It belongs to the goroutine that serves the domain's hits.
type Counter struct {
	limit   int
	entries map[key]*list.Element
	order   list.List // of *entry, the latest first
	dropped uint64
}

type entry struct {
	key   key
	count uint64
}

// NewCounter makes a counter without counts.
func NewCounter() *Counter { return newCounter(maxKeys) }

func newCounter(limit int) *Counter { return &Counter{limit: limit, entries: map[key]*list.Element{}} }

// add counts one more, and returns how many that makes.
func (c *Counter) add(k key) uint64 {
	if e, ok := c.entries[k]; ok {
		c.order.MoveToFront(e)
		e.Value.(*entry).count++
		return e.Value.(*entry).count
	}
	if len(c.entries) >= c.limit {
		last := c.order.Back()
		delete(c.entries, last.Value.(*entry).key)
		c.order.Remove(last)
		c.dropped++
	}
	c.entries[k] = c.order.PushFront(&entry{key: k, count: 1})
	return 1
}

// reset forgets a key's count.
func (c *Counter) reset(k key) {
	if e, ok := c.entries[k]; ok {
		delete(c.entries, k)
		c.order.Remove(e)
	}
}
