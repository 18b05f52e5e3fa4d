package condition

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
)

// parsing bounds what is parsed.
func parsing() []cel.EnvOption {
	return []cel.EnvOption{
		cel.EnableIdentifierEscapeSyntax(), cel.ParserExpressionSizeLimit(maxText), cel.ParserRecursionLimit(maxDepth), cel.ExpressionNodeLimit(maxNodes),
	}
}

// parse reads an expression, without a look at what its names mean.
func (s *Scope) parse(text string) (*cel.Ast, error) {
	if strings.TrimSpace(text) == "" {
		return nil, &Error{Text: text, Why: "there is nothing in it"}
	}
	parsed, issues := s.env.Parse(text)
	if issues.Err() != nil {
		return nil, &Error{Text: text, Why: s.explain(issues, nil)}
	}
	return parsed, nil
}

// Syntax looks at how expressions are written, where no guest is at hand that could say
// what their names mean. It may be used by several goroutines.
type Syntax struct{ bare *Scope }

// NewSyntax makes one.
func NewSyntax() (*Syntax, error) {
	env, err := cel.NewEnv(parsing()...)
	if err != nil {
		return nil, fmt.Errorf("conditions: %w", err)
	}
	return &Syntax{&Scope{env: env}}, nil
}

// Expression says what is wrong with a condition or a key.
func (s *Syntax) Expression(text string) error {
	_, err := s.bare.parse(text)
	return err
}

// Capture says what is wrong with EXPR or NAME=EXPR.
func (s *Syntax) Capture(spec string) error {
	_, text := splitCapture(spec)
	return s.Expression(text)
}

// Assignment says what is wrong with PLACE=EXPR.
func (s *Syntax) Assignment(text string) error {
	place, value, err := splitAssignment(text)
	if err != nil {
		return err
	}
	if err := s.Expression(place); err != nil {
		return err
	}
	return s.Expression(value)
}

// Message says what is wrong with a Template.
func (s *Syntax) Message(text string) error {
	_, parts, err := splitTemplate(text)
	for i := 0; err == nil && i < len(parts); i++ {
		err = s.Capture(parts[i])
	}
	return err
}
