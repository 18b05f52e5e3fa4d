package lab

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The server's wire: one JSON request a connection, then JSON answers, a line
// each. After the answer "copy" the connection is the copy's agent's line.

type request struct {
	Do     string // "copy", "up", "status", "down"
	Config Config
	// copy: the payload images, and where the host's serial output goes.
	Payloads map[string]string
	Serial   string
}

type answer struct {
	Progress string `json:",omitempty"` // more answers follow
	Error    string `json:",omitempty"`
	Status   *Status
}

// Status is what a lab server says of itself.
type Status struct {
	PID     int
	Dir     string // logs
	Running int    // copies now
	Slots   int    // copies that may run at a time
	Hosts   []HostStatus
}

// HostStatus is one booted host.
type HostStatus struct {
	Config  Config
	Dir     string
	Boot    float64 // seconds that its boot took
	Copies  int     // made so far
	Booting bool
}

func send(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func receive(r *bufio.Reader, v any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// Result is how a script ended.
type Result struct {
	Output string // standard output and error
	Exit   int
	// TSC is how many ticks it took, on the clock of the machine that ran it.
	// In the lab a tick is an instruction.
	TSC        uint64
	Start, End uint64 // the TSC before and after
}

// runScript has the agent run a script: in dom0 ('R') or in the guest ('G').
func runScript(w io.Writer, r *bufio.Reader, kind byte, script string, output func([]byte)) (res Result, err error) {
	if _, err := fmt.Fprintf(w, "%c %d\n%s", kind, len(script), script); err != nil {
		return res, err
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return res, fmt.Errorf("the host went away: %w", err)
		}
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "O":
			n, err := strconv.Atoi(f[1])
			if err != nil || n < 0 || n > 1<<20 {
				return res, fmt.Errorf("the agent says %q", line)
			}
			piece := make([]byte, n)
			if _, err := io.ReadFull(r, piece); err != nil {
				return res, fmt.Errorf("the host went away: %w", err)
			}
			output(piece)
		case len(f) == 4 && f[0] == "X":
			if _, err := fmt.Sscan(strings.Join(f[1:], " "), &res.Exit, &res.Start, &res.End); err != nil {
				return res, fmt.Errorf("the agent says %q: %w", line, err)
			}
			res.TSC = res.End - res.Start
			return res, nil
		default:
			return res, fmt.Errorf("the agent says %q", line)
		}
	}
}
