package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
)

// logLine is a record of a kernel's log for programs.
type logLine struct {
	Seq      uint64 `json:"seq"`
	Time     uint64 `json:"time_ns"`
	Level    uint8  `json:"level"`
	Facility uint8  `json:"facility"`
	Text     string `json:"text"`
}

func (a *app) dmesg() *cobra.Command {
	return a.lookCommand("dmesg DOMAIN", "Show the log of a guest's kernel", `dmesg shows the log of a guest's kernel, oldest first, as dmesg does in the guest: the
time since its boot in seconds, and the text. What the guest's dmesg -C took from its own
sight is shown as well. With -o json there are number, level and facility of each record.`,
		func(ctx context.Context, l *look, k *guestos.Kernel) error {
			all, err := k.Log(ctx)
			if !l.json {
				if printErr := l.log(all); printErr != nil {
					return errors.Join(printErr, err)
				}
			}
			return l.answer(struct {
				partialLine
				Log []logLine `json:"log"`
			}{partialOf(err), each(all, func(r *guestos.LogRecord) logLine { return logLine(*r) })}, nil, err)
		})
}

// log prints records for people: each line with the record's time.
func (l *look) log(all []guestos.LogRecord) error {
	var b strings.Builder
	for i := range all {
		for line := range strings.SplitSeq(all[i].Text, "\n") {
			fmt.Fprintf(&b, "[%s] %s\n", sinceBoot(all[i].Time), plain(line))
		}
	}
	_, err := fmt.Fprint(l.out, b.String())
	return err
}
