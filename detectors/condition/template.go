package condition

import (
	"fmt"
	"strings"
)

// maxMessage bounds a message, in bytes.
const maxMessage = 2048

// Template is a message with expressions in it: "{comm} opens {filename}". {{ and }}
// are braces themselves.
type Template struct {
	words []string // before, between and behind the captures
	parts []*Capture
}

// Template compiles one.
func (s *Scope) Template(text string) (*Template, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("a message of %d bytes: %d are allowed", len(text), maxText)
	}
	t := &Template{}
	var word strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case strings.HasPrefix(text[i:], "{{"), strings.HasPrefix(text[i:], "}}"):
			word.WriteByte(c)
			i++
		case c == '}':
			return nil, &Error{Text: text, Why: "a } without a {; write }} for the character"}
		case c == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return nil, &Error{Text: text, Why: "a { without a }; write {{ for the character"}
			}
			part, err := s.Capture(text[i+1 : i+end])
			if err != nil {
				return nil, err
			}
			t.words, t.parts = append(t.words, word.String()), append(t.parts, part)
			word.Reset()
			i += end
		default:
			word.WriteByte(c)
		}
	}
	t.words = append(t.words, word.String())
	return t, nil
}

// Text is the message at the hit that the scope was pointed at.
func (t *Template) Text() string {
	var out strings.Builder
	for i, part := range t.parts {
		out.WriteString(t.words[i])
		if v := part.Value(); v.Err != nil {
			out.WriteByte('?')
		} else {
			out.WriteString(v.Text)
		}
		if out.Len() > maxMessage {
			return out.String()[:maxMessage] + "…"
		}
	}
	out.WriteString(t.words[len(t.words)-1])
	return out.String()
}
