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
	words, parts, err := splitTemplate(text)
	if err != nil {
		return nil, err
	}
	t := &Template{words: words}
	for _, part := range parts {
		c, err := s.Capture(part)
		if err != nil {
			return nil, err
		}
		t.parts = append(t.parts, c)
	}
	return t, nil
}

// splitTemplate returns the expressions of a message, and the words around them.
func splitTemplate(text string) (words, parts []string, err error) {
	if len(text) > maxText {
		return nil, nil, fmt.Errorf("a message of %d bytes: %d are allowed", len(text), maxText)
	}
	var word strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case strings.HasPrefix(text[i:], "{{"), strings.HasPrefix(text[i:], "}}"):
			word.WriteByte(c)
			i++
		case c == '}':
			return nil, nil, &Error{Text: text, Why: "a } without a {; write }} for the character"}
		case c == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return nil, nil, &Error{Text: text, Why: "a { without a }; write {{ for the character"}
			}
			words, parts = append(words, word.String()), append(parts, text[i+1:i+end])
			word.Reset()
			i += end
		default:
			word.WriteByte(c)
		}
	}
	return append(words, word.String()), parts, nil
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
