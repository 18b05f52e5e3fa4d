package labcli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// to is a JSON that prints, or not.
func to(w io.Writer, wanted bool) JSON {
	return func(v any) (bool, error) {
		if !wanted {
			return false, nil
		}
		return true, json.NewEncoder(w).Encode(v)
	}
}

func run(wanted bool, args ...string) (string, error) {
	var out bytes.Buffer
	c := Command(to(&out, wanted))
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.Execute()
	return out.String(), err
}

// serveStatus is a lab server that knows one answer.
func serveStatus(t *testing.T, st lab.Status) {
	t.Helper()
	dir := filepath.Join(os.Getenv("HPROBE_LAB_CACHE"), "run-"+lab.Version())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if json.NewDecoder(c).Decode(new(any)) == nil {
				_ = json.NewEncoder(c).Encode(map[string]any{"Status": st})
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func TestStatus(t *testing.T) {
	t.Setenv("HPROBE_LAB_CACHE", t.TempDir())
	for wanted, want := range map[bool]string{false: "nothing is booted: hprobe lab up boots a host", true: `{"pid":0,"logs":"","copies":0,"slots":0,"hosts":[]}`} {
		if out, err := run(wanted, "status"); err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%q, %v", out, err)
		}
	}
	serveStatus(t, lab.Status{PID: 7, Dir: "/logs", Running: 1, Slots: 2, Hosts: []lab.HostStatus{{Dir: "/logs/1", Boot: 55.5, Copies: 3}, {Config: lab.Config{Xen: "4.14"}, Booting: true}}})
	out, err := run(false, "status")
	for _, want := range []string{"process 7: copies that run: 1 of 2; logs in /logs", "xen4.20-linux6.12-1cpu-1vcpu  up, booted in 56 s, copies so far: 3", "xen4.14-linux6.12-1cpu-1vcpu  boots"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%q, %v", out, err)
		}
	}
	out, err = run(true, "status")
	if want := `{"pid":7,"logs":"/logs","copies":1,"slots":2,"hosts":[{"host":"xen4.20-linux6.12-1cpu-1vcpu","booting":false,"boot_seconds":55.5,"copies":3,"logs":"/logs/1"},` +
		`{"host":"xen4.14-linux6.12-1cpu-1vcpu","booting":true,"boot_seconds":0,"copies":0,"logs":""}]}`; err != nil || strings.TrimSpace(out) != want {
		t.Errorf("%q, %v", out, err)
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		wanted bool
		exit   int
		want   string
	}{
		{false, 0, "a\n"}, {false, 3, "a\n"},
		{true, 0, `{"output":"a\n","exit":0,"ticks":9}` + "\n"}, {true, 3, `{"output":"a\n","exit":3,"ticks":9}` + "\n"},
	} {
		var out bytes.Buffer
		err := report(&out, to(&out, c.wanted), lab.Result{Output: "a\n", Exit: c.exit, TSC: 9})
		var ended *ExitError
		if errors.As(err, &ended) != (c.exit != 0) || ended != nil && ended.Status != c.exit || out.String() != c.want {
			t.Errorf("%+v: %q, %v", c, out.String(), err)
		}
	}
	full := errors.New("the disk is full")
	if err := report(io.Discard, func(any) (bool, error) { return true, full }, lab.Result{Exit: 3}); !errors.Is(err, full) {
		t.Errorf("what was not printed: %v", err)
	}
}

func TestTextOnly(t *testing.T) {
	var all []string
	for _, c := range Command(to(io.Discard, true)).Commands() {
		if _, ok := c.Annotations[TextOnly]; ok {
			all = append(all, c.Name())
		}
	}
	if fmt.Sprint(all) != "[console copy]" {
		t.Errorf("%q", all)
	}
}
