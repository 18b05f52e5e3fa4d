package isf

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// scanner reads JSON, from its begin to its end. Of the text no more than the value that
// is read is in memory. Each method reads one value.
type scanner struct {
	json  *jsontext.Decoder
	text  []byte       // of str
	names [1024]string // that were read, by their hash: most come again and again
}

// newScanner lets names be there twice: to know them takes memory, and it is noticed
// where it matters.
func newScanner(r io.Reader) *scanner {
	return &scanner{json: jsontext.NewDecoder(r, jsontext.AllowDuplicateNames(true))}
}

// object has each read the value of each name.
func (s *scanner) object(each func(name string) error) error {
	if err := s.begin('{', "an object"); err != nil {
		return err
	}
	for s.json.PeekKind() == '"' {
		name, err := s.str()
		if err == nil {
			err = each(name)
		}
		if err != nil {
			return err
		}
	}
	_, err := s.json.ReadToken() // "}", or else the error is here
	return err
}

// array has each read each element. null is one without: so Go writes those it has none of.
func (s *scanner) array(each func() error) error {
	if s.json.PeekKind() == 'n' {
		return s.json.SkipValue()
	}
	if err := s.begin('[', "an array"); err != nil {
		return err
	}
	for kind := s.json.PeekKind(); kind != ']' && kind != 0; kind = s.json.PeekKind() {
		if err := each(); err != nil {
			return err
		}
	}
	_, err := s.json.ReadToken()
	return err
}

func (s *scanner) begin(kind jsontext.Kind, want string) error {
	if s.json.PeekKind() != kind {
		return s.wrong(want)
	}
	_, err := s.json.ReadToken()
	return err
}

// wrong reads a value that is not what belongs there.
func (s *scanner) wrong(want string) error {
	is := map[jsontext.Kind]string{'{': "an object", '[': "an array", '"': "a string", '0': "a number", 't': "true", 'f': "false", 'n': "null"}[s.json.PeekKind()]
	if err := s.json.SkipValue(); err != nil {
		return err
	}
	return fmt.Errorf("%s where %s belongs", is, want)
}

func (s *scanner) str() (string, error) {
	if s.json.PeekKind() != '"' {
		return "", s.wrong("a string")
	}
	quoted, err := s.json.ReadValue()
	if err != nil {
		return "", err
	}
	if s.text, err = jsontext.AppendUnquote(s.text[:0], quoted); err != nil {
		return "", err
	}
	known := &s.names[hashOf(s.text)%uint64(len(s.names))]
	if *known != string(s.text) {
		*known = string(s.text)
	}
	return *known, nil
}

func (s *scanner) bool() (bool, error) {
	kind := s.json.PeekKind()
	if kind != 't' && kind != 'f' {
		return false, s.wrong("true or false")
	}
	_, err := s.json.ReadToken()
	return kind == 't', err
}

// uint reads a whole number that is not over most.
func (s *scanner) uint(most uint64) (uint64, error) {
	text, err := s.number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		v, err = whole(text)
	}
	if err != nil || v > most {
		return 0, fmt.Errorf("%s is no whole number from 0 to %d", quoted(text), most)
	}
	return v, nil
}

// word reads a number of 64 bits, with a sign or without.
func (s *scanner) word() (uint64, error) {
	text, err := s.number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if strings.HasPrefix(text, "-") {
		var signed int64
		signed, err = strconv.ParseInt(text, 10, 64)
		v = uint64(signed)
	}
	if err != nil {
		v, err = whole(text)
	}
	if err != nil {
		return 0, fmt.Errorf("%s is no whole number of 64 bits", quoted(text))
	}
	return v, nil
}

func (s *scanner) number() (string, error) {
	if s.json.PeekKind() != '0' {
		return "", s.wrong("a number")
	}
	v, err := s.json.ReadValue()
	return string(v), err
}

// whole is what a float is: JSON has no other numbers.
func whole(text string) (uint64, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f < 0 || f > 1<<53 || f != math.Trunc(f) {
		return 0, errors.New("no whole number")
	}
	return uint64(f), nil
}

// where says where in the document an error is: at what was read last.
func (s *scanner) where(err error) error {
	at := s.json.StackPointer()
	var syntax *jsontext.SyntacticError
	switch {
	case errors.As(err, &syntax):
		at, err = syntax.JSONPointer, fmt.Errorf("at byte %d: %w", syntax.ByteOffset, syntax.Err)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	var path []string
	for name := range at.Tokens() {
		path = append(path, quoted(name))
	}
	return fmt.Errorf("%s: %w", cmp.Or(strings.Join(path, "."), "the document"), err)
}

// maxQuoted is how many bytes of a name or a value an error has.
const maxQuoted = 100

// quoted is a name or a number as it is, and all else in quotes.
func quoted(name string) string {
	cut := ""
	if len(name) > maxQuoted {
		n := maxQuoted
		for n > 0 && !utf8.RuneStart(name[n]) {
			n--
		}
		name, cut = name[:n], "…"
	}
	for _, c := range name {
		if !strings.ContainsRune("_.-+", c) && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return strconv.Quote(name) + cut
		}
	}
	return cmp.Or(name, `""`) + cut
}
