package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

const ruleHelp = `A rule says which hits count and what happens at them:

  hprobe probe add -d guest --at do_sys_openat2 \
      --when 'filename.startsWith("/etc/shadow") && uid != 0' --capture filename,how.flags
  hprobe probe add -d guest --at __x64_sys_kill --key process.uid --threshold 100 \
      --deny EPERM --mode enforce

Expressions are CEL. They name the function's arguments (as the kernel's source
does, or arg0, arg1 …), fields through structs and pointers (file.f_path.dentry),
pid, tid, comm, uid, start_time, vcpu, current (the task_struct that runs), and
registers as reg.rax. A name or field that the guest's kernel does not have is an
error at once. Of memory that is not there the hit does not match; probe ls counts
it as an error. There are also u8(a), u16(a), u32(a), u64(a) and str(a) for memory
at an address, addr(pointer), mask(x, bits), s32(x), s64(x), and NAME(a) for the
struct NAME at an address: iovec(arg1).iov_len.

With --return a rule judges the end of each call: ret is what it returned, and there
are no arguments any more. --set ret=0 changes it; --deny comes too late.

--deny, --set and --pause only say what they would do, until --mode enforce. What
is judged, and what is set in memory, another thread of the guest may change
before the kernel uses it.`

func ruleFlags(cmd *cobra.Command, r *controlapi.Rule) {
	f := cmd.Flags()
	f.StringVar(&r.When, "when", "", "a condition in CEL: only such hits match (default: all)")
	f.StringArrayVar(&r.Capture, "capture", nil, "what trace shows: EXPR or NAME=EXPR, several with commas (default: all arguments)")
	f.Uint64Var(&r.Threshold, "threshold", 0, "act from the so-manieth match of a key on (default: at each)")
	f.StringVar(&r.Key, "key", "", "count matches for each value of this expression (default: all together)")
	f.StringVar(&r.ResetWhen, "reset", "", "a condition that sets its key's count back to 0")
	f.StringVar(&r.Message, "message", "", "make a finding with this text, in which {EXPR} is a value")
	f.StringVar(&r.Deny, "deny", "", "the function does not run, but returns this: EPERM, or a number")
	f.StringArrayVar(&r.Set, "set", nil, "PLACE=EXPR: set a register (rdi), an argument, a field (file.f_flags), u32(address) or mem(address)")
	f.BoolVar(&r.Pause, "pause", false, "pause the guest; xl unpause has it go on")
	f.StringVar(&r.Mode, "mode", "", "observe: only say what would be done (default); enforce: do it")
}

// ruleOf is the rule that the command line gives, or nil.
func ruleOf(cmd *cobra.Command, r *controlapi.Rule) *controlapi.Rule {
	given := false
	for _, flag := range []string{"when", "capture", "threshold", "key", "reset", "message", "deny", "set", "pause", "mode"} {
		given = given || cmd.Flags().Changed(flag)
	}
	if !given {
		return nil
	}
	var all []string
	for _, c := range r.GetCapture() {
		all = append(all, splitExpressions(c)...)
	}
	r.Capture = all
	return r
}

// splitExpressions splits at commas, but not at those in brackets or quotes.
func splitExpressions(s string) (all []string) {
	depth, start := 0, 0
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == '\\' {
				i++
			} else if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		case c == ',' && depth <= 0:
			all = append(all, strings.TrimSpace(s[start:i]))
			start = i + 1
		}
	}
	return append(all, strings.TrimSpace(s[start:]))
}

func matchedText(m *controlapi.Matches) string {
	if m == nil {
		return ""
	}
	return fmt.Sprintf(", %d matched", m.GetMatched())
}

// ruleText is a rule in a line.
func ruleText(r *controlapi.Rule, m *controlapi.Matches) string {
	text := r.GetWhen()
	if text == "" {
		text = "every hit"
	}
	if r.GetThreshold() > 0 {
		text += fmt.Sprintf("; from %d on", r.GetThreshold())
		if r.GetKey() != "" {
			text += fmt.Sprintf(" of one %s (%s", r.GetKey(), count(m.GetKeys(), "key"))
			if m.GetDropped() > 0 {
				text += fmt.Sprintf(", %d forgotten", m.GetDropped())
			}
			text += ")"
		}
	}
	var verdicts []string
	if r.GetDeny() != "" {
		verdicts = append(verdicts, "deny "+r.GetDeny())
	}
	for _, s := range r.GetSet() {
		verdicts = append(verdicts, "set "+s)
	}
	if r.GetPause() {
		verdicts = append(verdicts, "pause")
	}
	if verdicts != nil {
		mode := "observe"
		if r.GetMode() != "" {
			mode = r.GetMode()
		}
		text += "; " + mode + ": " + strings.Join(verdicts, ", ")
	}
	if m.GetLastError() != "" {
		text += "; last error: " + m.GetLastError()
	}
	return text
}
