package guestos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// A guest with tasks: task n is n*taskRoom behind the first, whose list_head is the list's.
const (
	tasksBase = 0x1_0000_0000
	taskRoom  = 0x200
	maxTasks  = 64
	things    = tasksBase + maxTasks*taskRoom // what tasks point to
	tasksEnd  = things + 0x2000

	credAt, proxyAt, signalAt, pidAt, spaceAt = things, things + 0x200, things + 0x400, things + 0x800, things + 0xc00
)

func taskTypes(b *isf.Builder) {
	structs(b, map[string]uint64{
		"task_struct.tasks": 0x100, "task_struct.thread_node": 0x110, "task_struct.__state": 0x18, "task_struct.exit_state": 0x20, "task_struct.flags": 0x24,
		"task_struct.real_parent": 0x80, "task_struct.signal": 0x88, "task_struct.real_cred": 0x90, "task_struct.thread_pid": 0x98, "task_struct.nsproxy": 0xa0,
		"task_struct.start_boottime": 0xa8, "signal_struct.thread_head": 0x10, "signal_struct.nr_threads": 8,
		"cred.uid": 0, "cred.gid": 4, "cred.suid": 8, "cred.sgid": 12, "cred.euid": 16, "cred.egid": 20, "cred.fsuid": 24, "cred.fsgid": 28, "cred.cap_effective": 0x30, "cred.user_ns": 0x40,
		"pid.level": 4, "pid.numbers": 0x10, "upid.nr": 0, "upid.ns": 8, "nsproxy.mnt_ns": 8, "nsproxy.net_ns": 16, "nsproxy.uts_ns": 24, "ns_common.inum": 4,
	})
	for _, of := range []string{"pid_namespace", "user_namespace", "mnt_namespace", "net", "uts_namespace"} {
		inStruct(b, of+".ns", "ns_common", 8)
	}
	b.Users["upid"] = isf.UserType{Kind: isf.Struct, Size: 16, Fields: b.Users["upid"].Fields}
	b.Symbols = append(b.Symbols, isf.Symbol{Name: "init_task", Addr: tasksBase})
}

func taskAt(n int) uint64 { return tasksBase + uint64(n)*taskRoom }

// tasks is such a guest, and its list as the kernel keeps it.
type tasks struct {
	*flat
	k *Kernel
}

func newTasks(t testing.TB, n int) *tasks {
	f, k := flatGuest(t, tasksBase, tasksEnd-tasksBase, taskTypes)
	g := &tasks{f, k}
	g.put64(taskAt(0)+0x100, taskAt(0)+0x100)
	g.put64(taskAt(0)+0x108, taskAt(0)+0x100)
	for i := range uint32(4) {
		g.put32(credAt+uint64(i)*8, 1000+i)
		g.put32(credAt+uint64(i)*8+4, 2000+i)
		g.put64(proxyAt+8*uint64(i), spaceAt+0x10*uint64(i))
		g.put32(spaceAt+0x10*uint64(i)+12, 4026531830+i)
	}
	g.put64(credAt+0x30, 0x1ff)
	g.put64(credAt+0x40, spaceAt)
	g.put32(signalAt+8, 3)
	g.put32(pidAt+4, 1)
	g.put32(pidAt+0x10, 77)
	g.put32(pidAt+0x20, 5)
	g.put64(pidAt+0x28, spaceAt+0x40)
	g.put32(spaceAt+0x4c, 4026532000)
	for i := 1; i <= n; i++ {
		g.add(i, uint32(i))
	}
	return g
}

// add puts a task at the list's end.
func (g *tasks) add(slot int, pid uint32) {
	at, head := taskAt(slot), taskAt(0)+0x100
	clear(g.b[at-g.base:][:taskRoom])
	g.put32(at+0x54, pid)
	g.put32(at+0x58, pid)
	g.put(at+0x70, fmt.Sprint("task", pid))
	g.put32(at+0x18, 1)
	g.put64(at+0x80, taskAt(0))
	g.put64(at+0x88, signalAt)
	g.put64(at+0x90, credAt)
	g.put64(at+0x98, pidAt)
	g.put64(at+0xa0, proxyAt)
	g.put64(at+0xa8, uint64(pid)*1e9)
	last := le.Uint64(g.b[head+8-g.base:])
	g.put64(at+0x100, head)
	g.put64(at+0x108, last)
	g.put64(last, at+0x100)
	g.put64(head+8, at+0x100)
}

// remove takes one out as list_del_rcu does: its way on stays.
func (g *tasks) remove(slot int) {
	at := taskAt(slot) + 0x100 - g.base
	next, back := le.Uint64(g.b[at:]), le.Uint64(g.b[at+8:])
	g.put64(back, next)
	g.put64(next+8, back)
	le.PutUint64(g.b[at+8:], 0xdead000000000122)
}

func TestStatus(t *testing.T) {
	g := newTasks(t, 3)
	g.put32(taskAt(2)+0x24, kernelThread)
	g.put64(taskAt(3)+0xa0, 0) // it has ended
	g.put64(taskAt(3)+0x98, 0)
	g.put32(taskAt(3)+0x20, 0x20)
	g.put32(taskAt(0)+0x58, 9) // of the parent
	all, err := g.k.Statuses(t.Context(), false)
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	want := Status{PID: 1, TID: 1, Parent: 9, Numbers: []uint32{77, 5}, Comm: "task1", State: 'S', Threads: 3, UID: [4]uint32{1000, 1002, 1001, 1003}, GID: [4]uint32{2000, 2002, 2001, 2003},
		Caps: 0x1ff, Started: 1e9, Namespaces: Namespaces{PID: 4026532000, User: 4026531830, Mount: 4026531831, Net: 4026531832, UTS: 4026531833}, task: taskAt(1)}
	if got := fmt.Sprintf("%+v", all[0]); got != fmt.Sprintf("%+v", want) {
		t.Errorf("%s\nnot\n%+v", got, want)
	}
	if !all[1].Kernel || all[2].State != 'Z' || all[2].Numbers != nil || all[2].Namespaces != (Namespaces{User: 4026531830}) || all[2].Why != "" {
		t.Errorf("%+v", all)
	}
}

func TestStates(t *testing.T) {
	for _, c := range []struct {
		state, exit uint32
		want        State
	}{{0, 0, 'R'}, {1, 0, 'S'}, {2, 0, 'D'}, {4, 0, 'T'}, {8, 0, 't'}, {0, 0x10, 'X'}, {0x80, 0x20, 'Z'}, {0x40, 0, 'P'}, {0x402, 0, 'I'}, {0x8000, 0, 'D'}, {0x1000, 0, 'D'}, {0x102, 0, 'D'}, {^uint32(0), ^uint32(0), 'I'}} {
		if got := stateOf(c.state, c.exit); got != c.want {
			t.Errorf("%#x, %#x: %v, not %v", c.state, c.exit, got, c.want)
		}
	}
}

func TestThreads(t *testing.T) {
	g := newTasks(t, 1)
	head := uint64(signalAt + 0x10)
	link := func(at, next uint64) {
		g.put64(at, next)
		g.put64(next+8, at)
	}
	for i := 2; i < 5; i++ {
		g.add(i, uint32(i))
		g.remove(i)
		g.put32(taskAt(i)+0x58, 1)
		link(taskAt(i-1)+0x110, taskAt(i)+0x110)
	}
	link(head, taskAt(1)+0x110)
	link(taskAt(4)+0x110, head)
	all, err := g.k.Statuses(t.Context(), true)
	var got []string
	for _, s := range all {
		got = append(got, fmt.Sprint(s.PID, "/", s.TID, s.Comm))
	}
	if want := "[1/1task1 1/2task2 1/3task3 1/4task4]"; fmt.Sprint(got) != want || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	g.put64(taskAt(3)+0x110, taskAt(2)+0x110)
	if all, err := g.k.Statuses(t.Context(), true); len(all) != 3 || !partial(err, "threads of process 1 goes in a circle") {
		t.Errorf("%+v, %v", all, err)
	}
}

func partial(err error, why string) bool {
	var p *PartialError
	return errors.As(err, &p) && strings.Contains(err.Error(), why)
}

// TestStatusesChange: tasks come and go, and their memory is used again, at any moment of a
// reading. Those that stay are there, once, in order and as they are; the others as they
// were. Nothing makes such an answer partial.
func TestStatusesChange(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		g := newTasks(t, 40)
		// Each third task stays; the others go at some time, and come again as somebody else.
		next := uint32(41)
		live := map[int]bool{}
		for i := 1; i <= 40; i++ {
			live[i] = true
		}
		pace := 10 + r.IntN(100)
		g.change = func() {
			if r.IntN(pace) != 0 {
				return
			}
			slot := 1 + r.IntN(maxTasks-1)
			switch {
			case slot%3 == 0 && slot <= 40:
			case live[slot]:
				g.remove(slot)
				live[slot] = false
			default:
				g.add(slot, next)
				live[slot] = true
				next++
			}
		}
		all, err := g.k.Statuses(t.Context(), false)
		g.change = nil
		if err != nil {
			if pace < 30 && partial(err, "") { // faster than any guest: but what is there is right
				continue
			}
			t.Fatalf("seed %d, pace %d: %v", seed, pace, err)
		}
		var pids []uint32
		for _, s := range all {
			pids = append(pids, s.PID)
			if s.Comm != fmt.Sprint("task", s.PID) || s.Started != uint64(s.PID)*1e9 || s.UID[0] != 1000 {
				t.Fatalf("seed %d: %+v", seed, s)
			}
		}
		if !slices.IsSorted(pids) || len(slices.Compact(slices.Clone(pids))) != len(pids) {
			t.Fatalf("seed %d: %v", seed, pids)
		}
		for pid := uint32(3); pid <= 40; pid += 3 {
			if !slices.Contains(pids, pid) {
				t.Fatalf("seed %d: no %d in %v", seed, pid, pids)
			}
		}
	}
}

// TestStatusComesBack: a task's memory becomes another task's, at the list's end, at any
// moment of a reading. Who takes the one for the other misses all between.
func TestStatusComesBack(t *testing.T) {
	for n, reads := 1, 2; n < reads; n++ {
		g := newTasks(t, 12)
		at := 0
		g.change = func() {
			if at++; at == n {
				g.remove(7)
				g.add(7, 70)
			}
		}
		all, err := g.k.Statuses(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		found := map[uint32]bool{}
		for _, s := range all {
			found[s.PID] = true
		}
		for pid := uint32(1); pid <= 12; pid++ {
			if !found[pid] && pid != 7 {
				t.Fatalf("a change at read %d: no %d in %v", n, pid, found)
			}
		}
		reads = at
	}
}

// TestTornStatus: a task whose rights change while they are read has those from before or
// those from after, and never some of each.
func TestTornStatus(t *testing.T) {
	g := newTasks(t, 1)
	copy(g.b[credAt+0x100-g.base:], g.b[credAt-g.base:][:0x60])
	for i := range uint64(8) {
		g.put32(credAt+0x100+4*i, 0)
	}
	reads := 0
	g.change = func() {
		if reads++; reads%9 == 0 { // the old ones are used for another at once
			was := le.Uint64(g.b[taskAt(1)+0x90-g.base:])
			g.put64(taskAt(1)+0x90, 2*credAt+0x100-was)
			g.put32(was, 7)
		} else if reads%9 == 1 {
			g.put32(credAt, 1000)
			g.put32(credAt+0x100, 0)
		}
	}
	for range 50 {
		all, err := g.k.Statuses(t.Context(), false)
		if len(all) != 1 || all[0].Why == "" && (all[0].UID[0] != all[0].UID[1]/1000*1000 || all[0].UID[0] == 7) {
			t.Fatalf("%+v, %v", all, err)
		}
	}
}

func TestStatusesLie(t *testing.T) {
	for name, c := range map[string]struct {
		at, value uint64
		why       string
		found     int
	}{
		"a circle":          {taskAt(5) + 0x100, taskAt(3) + 0x100, "the list of processes goes in a circle behind 5 entries", 5},
		"itself":            {taskAt(5) + 0x100, taskAt(5) + 0x100, "goes in a circle behind 5 entries", 5},
		"nowhere":           {taskAt(5) + 0x100, 0xffff_c000_0000_0000, "is cut off behind 5 entries", 5},
		"null":              {taskAt(5) + 0x100, 0, "is cut off behind 5 entries", 5},
		"some are skipped":  {taskAt(5) + 0x100, taskAt(9) + 0x100, "does not fit together behind 5 entries", 17},
		"its end is early":  {taskAt(5) + 0x100, taskAt(0) + 0x100, "does not fit together at its end", 5},
		"a wrong way back":  {taskAt(5) + 0x108, 0xdead, "does not fit together behind 4 entries", 20},
		"wild credentials":  {taskAt(5) + 0x90, 1 << 63, "of process 5: its credentials", 20},
		"wild numbers":      {taskAt(5) + 0x98, 1 << 63, "of process 5: its numbers", 20},
		"a wild parent":     {taskAt(5) + 0x80, 1 << 63, "of process 5: its parent", 20},
		"wild name spaces":  {taskAt(5) + 0xa0, 1 << 63, "of process 5: its name spaces", 20},
		"too many levels":   {pidAt, 1000 << 32, "they are of 1000 PID name spaces", 20},
		"a name space less": {proxyAt + 8, 1 << 63, "of process 1: its name spaces", 20},
	} {
		g := newTasks(t, 20)
		g.put64(c.at, c.value)
		all, err := g.k.Statuses(t.Context(), false)
		if len(all) != c.found || !partial(err, c.why) || g.reads > 20_000 {
			t.Errorf("%s: %d found by %d reads, %v", name, len(all), g.reads, err)
		}
	}
}

// TestLongList: a list of ten million entries, all of which fit together, costs as much as
// one of maxProcesses.
func TestLongList(t *testing.T) {
	k := &Kernel{mem: guestmem.NewReader(endless{}), Space: xenevents.AddressSpace{Mode: xenevents.PagingNone}}
	var r reasons
	start := time.Now()
	all, err := (&list[uint64]{k: k, what: "the list", head: 16, limit: maxProcesses, read: func(at uint64) (uint64, error) { return at, nil }, same: func(uint64, uint64) bool { return true }}).all(t.Context(), &r)
	if err != nil || len(all) != maxProcesses || !partial(r.err(), "the list has no end") {
		t.Errorf("%d, %v, %v", len(all), err, r.err())
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	// Less time than it takes: it is over at the hundredth entry.
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	r = reasons{}
	all, err = (&list[uint64]{k: k, what: "the list", head: 16, limit: 1 << 30, read: func(at uint64) (uint64, error) {
		if at >= 100*16 {
			<-ctx.Done()
		}
		return at, nil
	}, same: func(uint64, uint64) bool { return true }}).all(ctx, &r)
	if err != nil || len(all) == 0 || len(all) > 100 || !partial(r.err(), "the time for the list was over") {
		t.Errorf("%d, %v, %v", len(all), err, r.err())
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&list[uint64]{k: k, head: 16, limit: 9}).all(cancelled, &r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// endless is memory in which each 16 bytes are a list's entry between its neighbours.
type endless struct{}

func (endless) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	v := uint64(at) + 16
	if at%16 != 0 {
		v = uint64(at) - 8 - 16
	}
	le.PutUint64(p, v)
	return len(p), nil
}

func (endless) WriteGPA([]byte, xenevents.GPA) (int, error) { panic("nobody writes to it") }

// FuzzStatuses has the guest write what its tasks are.
func FuzzStatuses(f *testing.F) {
	g := newTasks(f, 5)
	was := slices.Clone(g.b)
	f.Add(aPoke(taskRoom/8+0x20, taskAt(3)+0x100), true)
	f.Add(aPoke(3*taskRoom/8+0x12, 1<<63), false)
	f.Fuzz(func(t *testing.T, mem []byte, threads bool) {
		g.fuzzed(was, mem)
		all, err := g.k.Statuses(t.Context(), threads)
		if p := (*PartialError)(nil); err != nil && !errors.As(err, &p) || len(all) > maxTasks*maxTasks {
			t.Errorf("%d, %v", len(all), err)
		}
		if g.reads > 3_000_000 {
			t.Errorf("%d reads", g.reads)
		}
	})
}
