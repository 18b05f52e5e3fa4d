package condition

import (
	"errors"
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// object is a struct in the guest's memory: where it is, and of which type. What
// is in it is read when a field is asked for.
type object struct {
	view  *view
	at    uint64
	shape *shape // a record
}

var errNoConversion = errors.New("a value of the guest's can't be converted")

// ConvertToNative makes it a ref.Val.
func (o *object) ConvertToNative(reflect.Type) (any, error) { return nil, errNoConversion }

// ConvertToType knows only its own type.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return o.shape.cel
	}
	return types.WrapErr(errNoConversion)
}

// Equal compares addresses: two structs are one where they are at one place.
func (o *object) Equal(other ref.Val) ref.Val {
	p, ok := other.(*object)
	return types.Bool(ok && p.at == o.at)
}

// Type is its struct's.
func (o *object) Type() ref.Type { return o.shape.cel }

// Value is itself.
func (o *object) Value() any { return o }

// sequence is an array, or what a pointer points to: read element by element.
type sequence struct {
	view  *view
	at    uint64
	elem  *shape
	count int
}

// ConvertToNative makes it a ref.Val.
func (l *sequence) ConvertToNative(reflect.Type) (any, error) { return nil, errNoConversion }

// ConvertToType knows only lists.
func (l *sequence) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.ListType:
		return l
	case types.TypeType:
		return types.ListType
	}
	return types.WrapErr(errNoConversion)
}

// Equal compares addresses.
func (l *sequence) Equal(other ref.Val) ref.Val {
	m, ok := other.(*sequence)
	return types.Bool(ok && m.at == l.at)
}

// Type is list.
func (l *sequence) Type() ref.Type { return types.ListType }

// Value is itself.
func (l *sequence) Value() any { return l }

// Add is refused: nothing here grows.
func (l *sequence) Add(ref.Val) ref.Val { return types.WrapErr(errNoConversion) }

// Contains looks at one element after the other.
func (l *sequence) Contains(want ref.Val) ref.Val {
	for i := range l.count {
		v := l.Get(types.Int(i))
		if types.IsError(v) {
			return v
		}
		if v.Equal(want) == types.True {
			return types.True
		}
	}
	return types.False
}

// Get reads one element.
func (l *sequence) Get(index ref.Val) ref.Val {
	var i int
	switch n := index.(type) {
	case types.Int:
		i = int(n)
	case types.Uint:
		i = int(min(uint64(n), maxElements))
	default:
		return types.WrapErr(errNoConversion)
	}
	if i < 0 || i >= l.count {
		return types.WrapErr(fmt.Errorf("there is no element %d of %d", i, l.count))
	}
	if l.at == 0 {
		return types.WrapErr(errNull)
	}
	v, err := l.elem.load(l.view, l.at+uint64(i)*l.elem.size)
	if err != nil {
		return types.WrapErr(err)
	}
	return v
}

// Iterator goes through all elements; CEL's limit of costs ends it early.
func (l *sequence) Iterator() traits.Iterator { return &iterator{sequence: l} }

// Size is how many elements may be asked for.
func (l *sequence) Size() ref.Val { return types.Int(l.count) }

type iterator struct {
	*sequence
	next int
}

// HasNext says whether there is another one.
func (i *iterator) HasNext() ref.Val { return types.Bool(i.next < i.count) }

// Next reads it.
func (i *iterator) Next() ref.Val {
	i.next++
	return i.Get(types.Int(i.next - 1))
}
