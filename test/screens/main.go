// Command screens makes docs/screens: what hprobe shows, as it was shown in dom0 of a host in
// the lab. Times and addresses differ each time.
//
//	go run ./test/screens
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

const (
	module = "github.com/hprobe/hprobe/"
	linux  = "6.12" // what the lab's guest runs where nobody says
)

// screens are the commands that are shown, and what goes on meanwhile.
var screens = []struct{ name, before, command string }{
	{"doctor", "", "hprobe doctor guest"},
	{"policy-apply", `hprobe policy stock ptrace-attach > ptrace-attach.yaml; hprobe policy stock cve-2021-4034 | sed 's/^spec:/&\n  mode: enforce/' > cve-2021-4034.yaml`,
		"hprobe policy apply ptrace-attach.yaml cve-2021-4034.yaml"},
	{"policy-explain", "", "hprobe policy explain cve-2021-4034.yaml"},
	{"findings", "guest 'attacks ptrace; attacks vm_read; attacks argv' > /dev/null", "hprobe findings"},
	{"policy-status", "", "hprobe policy status"},
	{"trace", `hprobe probe add -d guest --at vfs_open --when 'path.dentry.d_name.name == "shadow"' > /dev/null
(sleep 1; guest 'for i in 1 2 3; do cat /etc/shadow; done; attacks ptrace' > /dev/null 2>&1) &`, "hprobe trace -n 3"},
	{"top", "hprobe probe add -d guest --syscall openat,read,mkdir > /dev/null\n(guest 'for i in $(seq 60); do mkdir /tmp/t; rmdir /tmp/t; cat /proc/uptime; done' > /dev/null 2>&1) &\nsleep 1", "hprobe top --once"},
	{"status", "", "hprobe status"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "screens:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "hprobe-screens-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	say := func(s string) { fmt.Fprintln(os.Stderr, s) }
	files, err := files(ctx, dir, say)
	if err != nil {
		return err
	}
	host, err := lab.Open(ctx, lab.Config{}, lab.Options{Progress: say}, files...)
	if err != nil {
		return err
	}
	defer host.Close()
	dom0 := func(script string) (string, error) {
		res, err := host.Run(ctx, "cd /tmp; "+script)
		if err == nil && res.Exit != 0 {
			err = fmt.Errorf("%s: exit status %d: %s", script, res.Exit, res.Output)
		}
		return res.Output, err
	}
	if _, err := dom0("guest 'mkdir -p /etc; echo root > /etc/shadow'"); err != nil {
		return err
	}
	for i, s := range screens {
		if i == 1 { // doctor wants nobody to watch the guest
			if _, err := dom0("hprobed --profiles /payload/profiles > hprobed.log 2>&1 &\nuntil hprobe status > /dev/null 2>&1; do sleep 0.1; done"); err != nil {
				return err
			}
		}
		text, err := dom0(s.before + "\n" + s.command)
		if err != nil {
			return err
		}
		text = fmt.Sprintf("dom0# %s\n%s\n", s.command, strings.TrimRight(text, "\n"))
		if err := os.WriteFile(filepath.Join("docs", "screens", s.name+".txt"), []byte(text), 0o644); err != nil {
			return err
		}
		fmt.Println(text)
	}
	return nil
}

// files are those of the copy.
func files(ctx context.Context, dir string, say func(string)) ([]lab.File, error) {
	var all []lab.File
	for _, name := range []string{"hprobe", "hprobed"} {
		path, err := lab.BuildGo(ctx, module+"cmd/"+name)
		if err != nil {
			return nil, err
		}
		all = append(all, lab.File{Name: name, Source: path})
	}
	attacks, err := guests.Program(ctx, "attacks")
	if err != nil {
		return nil, err
	}
	kernel, _, err := lab.GuestKernel(ctx, linux)
	if err != nil {
		return nil, err
	}
	say("making the profile of the guest's kernel")
	profile, err := guests.Profile(ctx, all[0].Source, kernel, dir)
	return append(all, attacks, profile), err
}
