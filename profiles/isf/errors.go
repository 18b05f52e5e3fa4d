package isf

import (
	"errors"
	"fmt"
)

// What lookups fail with; match with errors.Is.
var (
	ErrNoSymbol = errors.New("no such symbol")
	ErrNoType   = errors.New("no such type")
	ErrNoMember = errors.New("no such member")
)

// A NotFoundError says what a profile lacks. It matches ErrNoSymbol, ErrNoType
// or ErrNoMember.
type NotFoundError struct {
	Kind error  // ErrNoSymbol, ErrNoType or ErrNoMember
	Name string // what was looked for: "task_struct.credd"
}

func (e *NotFoundError) Error() string { return fmt.Sprintf("%q: %v", e.Name, e.Kind) }

// Unwrap returns the kind.
func (e *NotFoundError) Unwrap() error { return e.Kind }

// A SyntaxError says where a file is no ISF and why.
type SyntaxError struct {
	Path   string // JSON path of the value: "user_types.task_struct.fields.pid.offset"
	Offset int64  // in bytes, from the start of the (uncompressed) file
	Msg    string
}

func (e *SyntaxError) Error() string {
	path := e.Path
	if path == "" {
		path = "(top level)"
	}
	return fmt.Sprintf("no valid ISF: %s (byte %d): %s", path, e.Offset, e.Msg)
}
