package stopgap

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// Operand says where a value is at a function's entry: "arg1" is an argument,
// "[arg0+8]" the 8 bytes in the guest's memory that an argument and an offset
// point to, "[[arg0]+0x10]" those behind a pointer in memory.
type Operand struct {
	text string
	arg  int
	// offsets are added one after the other; what is found is read as 8 bytes
	// after each. Without any, the operand is the argument itself.
	offsets []uint64
}

// maxReads bounds how deep an operand may nest.
const maxReads = 8

// ParseOperand reads the notation that Operand's documentation describes.
func ParseOperand(text string) (*Operand, error) {
	o := &Operand{text: text}
	rest := strings.ReplaceAll(text, " ", "")
	depth := len(rest) - len(strings.TrimLeft(rest, "["))
	fail := func(why string) (*Operand, error) {
		return nil, fmt.Errorf("no place of a value: %q (%s); it is written like arg1, [arg0+8] or [[arg0]+0x10]", text, why)
	}
	if depth > maxReads {
		return fail(fmt.Sprintf("more than %d reads", maxReads))
	}
	rest, ok := strings.CutPrefix(rest[depth:], "arg")
	if !ok || rest == "" || rest[0] < '0' || rest[0] > '5' {
		return fail("it begins with one of arg0 to arg5")
	}
	o.arg = int(rest[0] - '0')
	for rest = rest[1:]; depth > 0; depth-- {
		number, after, ok := strings.Cut(rest, "]")
		if !ok {
			return fail("a ] is missing")
		}
		var offset uint64
		if number != "" {
			v, err := strconv.ParseUint(strings.TrimPrefix(number, "+"), 0, 32)
			if err != nil || number[0] != '+' {
				return fail("an offset is written like +8")
			}
			offset = v
		}
		o.offsets = append(o.offsets, offset)
		rest = after
	}
	if rest != "" {
		return fail(fmt.Sprintf("what does %q mean?", rest))
	}
	return o, nil
}

func (o *Operand) String() string { return o.text }

// Eval finds the value at a hit.
func (o *Operand) Eval(h detectors.Hit) (uint64, error) {
	v, err := h.Arg(o.arg)
	for _, offset := range o.offsets {
		if err != nil {
			return 0, err
		}
		v, err = h.ReadUint64(xenevents.GVA(v + offset))
	}
	return v, err
}

// lengths has a Rule with an Operand look at that one value.
func (o *Operand) lengths(h detectors.Hit, each func(string, uint64) bool) error {
	v, err := o.Eval(h)
	if err == nil {
		each(o.text, v)
	}
	return err
}
