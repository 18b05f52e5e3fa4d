package daemoncli

import (
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hprobe/hprobe/cmd/internal/audit"
	"github.com/hprobe/hprobe/cmd/internal/daemon"
)

// record writes a command of the control API into the audit log. That it can't is logged,
// and does not undo the command.
func (p *program) record(c *daemon.Command) {
	e := audit.Entry{Time: c.Time, Command: c.Method, Outcome: "done", Arguments: map[string]string{}}
	if c.Who != nil {
		e.UID, e.PID = c.Who.UID, uint32(c.Who.PID)
	}
	if c.Err != nil {
		e.Outcome = status.Convert(c.Err).Message()
	}
	if c.Request != nil {
		e.Domain = flatten(c.Request, "", e.Arguments)
	}
	if _, err := p.audit.Write(e); err != nil {
		p.log.Error("the audit log", "command", c.Method, "err", err)
	}
}

// flatten writes a message's fields into a map, those of messages in it with their names
// before, and returns the one that is called domain.
func flatten(m proto.Message, prefix string, into map[string]string) (domain string) {
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := prefix + string(f.Name())
		switch {
		case name == "domain":
			domain = v.String()
		case f.Message() != nil && !f.IsList() && !f.IsMap():
			flatten(v.Message().Interface(), name+".", into)
		default:
			into[name] = v.String()
		}
		return true
	})
	return domain
}
