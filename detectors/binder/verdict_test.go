package binder

import (
	"errors"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// TestVerdicts: registers and memory are set, the domain is paused, and who runs is
// there as far as it is asked for.
func TestVerdicts(t *testing.T) {
	b := newBench(t)
	var errs []error
	var pid, tid uint32
	var comm string
	regs := func(h detectors.Hit) detectors.Outcome {
		errs = append(errs[:0], h.Write(make([]byte, detectors.MaxWrite+1), stack-512), h.Write([]byte("written"), stack-512), h.Write([]byte{1}, 0x1000))
		pid, _ = h.Running().PID()
		tid, _ = h.Running().TID()
		comm, _ = h.Running().Comm()
		_, err := h.Running().UID() // this profile does not know
		errs = append(errs, err)
		r := *h.Registers()
		r.RAX = 0x99
		return detectors.Outcome{Verdict: detectors.Verdict{Registers: &r}}
	}
	bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{"vfs_read"}, handle: regs})
	if err != nil {
		t.Fatal(err)
	}
	if rax := b.call(t, 1, 2); rax != 0x99 {
		t.Errorf("it returned %#x", rax)
	}
	if errs[0] == nil || errs[1] != nil || !errors.Is(errs[2], xenevents.ErrNotMapped) || errs[3] == nil || pid != 6 || tid != 7 || comm != "evil\x1b[2J" {
		t.Errorf("%v, %d, %d, %q", errs, pid, tid, comm)
	}
	var got [7]byte
	back := func(h detectors.Hit) detectors.Outcome {
		_, err = h.Read(got[:], stack-512)
		return detectors.Outcome{}
	}
	if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"untyped"}, handle: back}); err != nil {
		t.Fatal(err)
	}
	if b.call(t, 1, 2); err != nil || string(got[:]) != "written" {
		t.Errorf("the stack has %q, %v", got, err)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	pause := func(detectors.Hit) detectors.Outcome {
		return detectors.Outcome{Verdict: detectors.Verdict{Pause: true, Deny: true, Return: -1}}
	}
	if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"vfs_read"}, handle: pause}); err != nil {
		t.Fatal(err)
	}
	go func() { // as somebody with xl would
		for paused := false; !paused; {
			err := b.engine.Do(t.Context(), func(dom xenevents.Domain) error {
				info, err := dom.Info(t.Context())
				if paused = info.Paused; paused {
					err = dom.Unpause()
				}
				return err
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	if rax := b.call(t, 1, 2); int64(rax) != -1 {
		t.Errorf("it returned %#x", rax)
	}
}

func TestArgsAt(t *testing.T) {
	p := newBench(t).binder.kernel.Profile
	for text, want := range map[string]string{"vfs_read": "file", "mod!vfs_read": "arg0", "mod!typed": "own", "other!typed": "arg0", "untyped": "arg0", "vfs_read+1": "", "0xffffffff81800800": ""} {
		at, err := ParseLocation(text)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := SignatureAt(p, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		args := sig.Args
		if want == "" && args != nil || want != "" && args[0].Name != want {
			t.Errorf("%s: %+v", text, args)
		}
	}
}
