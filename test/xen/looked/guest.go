package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// thread is one as the guest's /proc has it: test/guests' program procs prints it.
type thread struct {
	pid, tid uint32
	comm     string
	started  uint64 // in 1/100 s
	state    string
	fields   map[string]string // by name: what stays as it is, or does not
}

// word is all that the guest says of itself.
type word struct {
	threads map[uint32]*thread
	maps    map[uint32][]string
	files   map[uint32][]string
	modules []string
}

// ask has the guest say it.
func ask(ctx context.Context, script string) (*word, error) {
	out, err := guest(ctx, script)
	if err != nil {
		return nil, err
	}
	w := &word{threads: map[uint32]*thread{}, maps: map[uint32][]string{}, files: map[uint32][]string{}}
	for line := range strings.Lines(out) {
		if err := w.add(strings.TrimSuffix(line, "\n")); err != nil {
			return nil, fmt.Errorf("the guest says %q: %w", line, err)
		}
	}
	if len(w.threads) < 20 || len(w.modules) == 0 {
		return nil, fmt.Errorf("the guest says %q", out)
	}
	return w, nil
}

func (w *word) add(line string) error {
	kind, rest, _ := strings.Cut(line, "\t")
	switch kind {
	case "P":
		return w.addThread(strings.Split(rest, "\t"))
	case "O":
		w.modules = append(w.modules, rest)
		return nil
	}
	number, rest, _ := strings.Cut(rest, "\t")
	pid, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return err
	}
	switch kind {
	case "M":
		if !strings.HasSuffix(rest, "[vsyscall]") {
			w.maps[uint32(pid)] = append(w.maps[uint32(pid)], strings.TrimRight(rest, " "))
		}
	case "F":
		i := strings.LastIndexByte(rest, '\t')
		name, err := hex.DecodeString(rest[i+1:])
		if err != nil {
			return err
		}
		w.files[uint32(pid)] = append(w.files[uint32(pid)], rest[:i+1]+string(name))
	default:
		return fmt.Errorf("a line of kind %q", kind)
	}
	return nil
}

func (w *word) addThread(f []string) error {
	if len(f) != 12 {
		return fmt.Errorf("%d fields", len(f))
	}
	var t thread
	if _, err := fmt.Sscan(f[0]+" "+f[1]+" "+f[3], &t.pid, &t.tid, &t.started); err != nil {
		return err
	}
	comm, err := hex.DecodeString(f[2])
	if err != nil {
		return err
	}
	t.comm, t.state = string(comm), f[4]
	caps, err := strconv.ParseUint(f[10], 16, 64)
	if err != nil && f[10] != "" { // of one that just ended
		return err
	}
	t.fields = map[string]string{"pid": f[0], "comm": t.comm, "ppid": f[5], "uids": f[6], "gids": f[7], "numbers": f[8], "threads": f[9],
		"caps": fmt.Sprintf("%#x", caps), "name spaces": strings.TrimSpace(f[11])}
	w.threads[t.tid] = &t
	return nil
}

// numberOf is the number of the process with a name.
func (w *word) numberOf(comm string) uint32 {
	for tid, t := range w.threads {
		if t.comm == comm {
			return tid
		}
	}
	return 0
}

// span are numbers of processes, from the first to the last.
type span struct{ from, to uint32 }

// ranges are the numbers that props load printed.
func ranges(text string) (all []span, err error) {
	for line := range strings.Lines(text) {
		var s span
		if _, scanErr := fmt.Sscanf(line, "%d-%d\n", &s.from, &s.to); scanErr == nil {
			all = append(all, s)
		} else if line != "end\n" {
			return nil, fmt.Errorf("props load says %q", text)
		}
	}
	return all, nil
}
