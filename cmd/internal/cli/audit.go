package cli

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/audit"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

func (a *app) audit() *cobra.Command {
	verify := &cobra.Command{Use: "verify [FILE...]", Short: "Check that nothing was changed in hprobed's audit log", Args: cobra.ArbitraryArgs,
		Long: `verify reads hprobed's audit log and checks that each entry follows from the one before:
it has that one's SHA-256. An entry that was changed, removed or put elsewhere shows, and
the exit status is 1. Without FILE it is ` + audit.DefaultPath + ` and the old files
beside it; FILEs may be compressed, and in any order.

It can't show that entries were cut off at the end, or that the log was written anew by
someone who knows how. Keep the number and the hash that verify prints on another machine,
and see next time that the entry of that number still has that hash (--entry).`}
	entry := verify.Flags().String("entry", "", "fail unless the entry of this number has this hash: NUMBER:HASH, as verify printed them")
	verify.RunE = func(_ *cobra.Command, files []string) error {
		var noted audit.Head
		if *entry != "" {
			var err error
			if noted, err = audit.ParseHead(*entry); err != nil {
				return fmt.Errorf("%w: --entry: %w", errUsage, err)
			}
		}
		if len(files) == 0 {
			var err error
			if files, err = audit.Files(audit.DefaultPath); err != nil {
				return err
			}
			if len(files) == 0 {
				return fmt.Errorf("there is no %s: name the log's files", audit.DefaultPath)
			}
		}
		return a.verify(files, noted)
	}
	return group("audit", "Look at hprobed's audit log", verify)
}

// verifiedLine is a log that was checked, for programs.
type verifiedLine struct {
	Files   []string `json:"files"` // the oldest first
	Entries uint64   `json:"entries"`
	First   uint64   `json:"first"`
	Last    uint64   `json:"last"`
	Torn    uint64   `json:"torn"`
	Hash    string   `json:"hash"` // of the last one
}

func (a *app) verify(files []string, noted audit.Head) error {
	firsts := map[string]uint64{}
	for _, f := range files {
		var err error
		if firsts[f], err = audit.First(f); err != nil {
			return err
		}
	}
	slices.SortStableFunc(files, func(x, y string) int { return cmp.Compare(firsts[x], firsts[y]) })
	v := audit.Verifier{Noted: noted}
	last := ""
	for _, f := range files {
		r, err := rotate.OpenOld(f)
		if err != nil {
			return err
		}
		err = v.Read(r)
		r.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		last = f
	}
	if err := v.End(); err != nil {
		return fmt.Errorf("%s: %w", last, err)
	}
	if a.json {
		return a.value(verifiedLine{files, v.Lines, v.First, v.Head.Seq, v.Torn, v.Head.Hash})
	}
	if v.Lines == 0 {
		_, err := fmt.Fprintln(a.out, "the log is empty")
		return err
	}
	torn := ""
	if v.Torn > 0 {
		torn = fmt.Sprintf(", and %s that a crash or a full disk cut", count(v.Torn, "line"))
	}
	_, err := fmt.Fprintf(a.out, "%s, entries %d to %d%s: each follows from the one before\nthe last one is %s\n", count(v.Lines, "line"), v.First, v.Head.Seq, torn, v.Head)
	return err
}
