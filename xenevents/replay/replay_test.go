package replay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivertest"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/replay"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const late = 20 * time.Second

// Where things are in the guest, and its functions.
const (
	codeAt  xenevents.GVA = 0xffff_ffff_8100_0000
	dataAt  xenevents.GVA = 0xffff_8880_0000_0000
	otherAt xenevents.GVA = 0xffff_8880_0010_0000
	stackAt xenevents.GVA = 0xffff_c900_0000_0000

	sum   = codeAt + 0x10 // push rbp; mov rbp,rsp; lea rax,[rdi+rsi]; pop rbp; ret
	load  = codeAt + 0x40 // mov rax,[rdi]; ret
	store = codeAt + 0x50 // mov [rdi],rsi; mov rax,rsi; ret
	loads = codeAt + 0x80 // call load; ret
)

// guest is a guest of sim.
type guest struct {
	t     testing.TB
	host  *sim.Host
	guest *sim.Guest
	space *sim.Space
	pages map[xenevents.GVA]xenevents.GFN
}

func newGuest(t testing.TB) *guest {
	h := sim.NewHost()
	g := &guest{t: t, host: h, guest: h.Add(sim.Config{ID: 1, Name: "guest"}), pages: map[xenevents.GVA]xenevents.GFN{}}
	g.space = g.guest.NewSpace()
	for _, at := range []xenevents.GVA{codeAt, dataAt, otherAt, stackAt} {
		g.pages[at] = g.space.Page(at)
	}
	for at, code := range map[xenevents.GVA][]byte{
		sum:   {0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x04, 0x37, 0x5d, 0xc3},
		load:  {0x48, 0x8b, 0x07, 0xc3},
		loads: {0xe8, 0xbb, 0xff, 0xff, 0xff, 0xc3},
		store: {0x48, 0x89, 0x37, 0x48, 0x89, 0xf0, 0xc3},
	} {
		g.poke(at, code)
	}
	g.guest.VCPU(0).Set(func(r *xenevents.Registers) { r.CR3, r.RSP = g.space.CR3(), uint64(stackAt)+xenevents.PageSize })
	return g
}

func (g *guest) poke(at xenevents.GVA, b []byte) {
	g.guest.Poke(g.pages[at.Page()].GPA()+xenevents.GPA(at.Offset()), b)
}

// poke64 writes a word of the data.
func (g *guest) poke64(at xenevents.GVA, v uint64) {
	g.poke(at, binary.LittleEndian.AppendUint64(nil, v))
}

func (g *guest) run(steps ...sim.Step) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	g.guest.VCPU(0).Run(steps...)
	must(g.t, g.guest.VCPU(0).Wait(ctx))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seen is a hit as a probe sees it, with a word that it read.
type seen struct {
	At       xenevents.GVA
	RDI, RSI uint64
	Word     uint64
	Err      string
	Return   bool
	RAX      uint64
}

// want is a probe, and what it reads at a hit; 0: nothing.
type want struct {
	at, reads xenevents.GVA
	returns   bool
	pause     bool
}

// watch has an engine serve dom with probes while do runs, and returns their hits.
func watch(t testing.TB, dom xenevents.Domain, space xenevents.AddressSpace, wants []want, do func()) (hits []seen) {
	t.Helper()
	engine, err := probe.New(dom, probe.Options{})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	select {
	case <-engine.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	for _, w := range wants {
		r := probe.Request{Name: "p", At: w.at, Space: space, Return: w.returns}
		r.Decide = func(h *probe.Hit) (v probe.Verdict) {
			s := seen{At: w.at, RDI: h.Regs.RDI, RSI: h.Regs.RSI, Return: h.Return}
			if h.Return {
				s.RAX = h.Regs.RAX
			}
			if w.reads != 0 {
				var err error
				if s.Word, err = h.ReadUint64(w.reads); err != nil {
					s.Err = err.Error()
				}
			}
			hits = append(hits, s)
			v.Pause = w.pause
			return v
		}
		if _, err := engine.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	do()
	cancel()
	must(t, <-ended)
	return hits
}

// record records some work of a guest, and returns the hits and the recording.
func record(t testing.TB, wants []want) ([]seen, []byte) {
	t.Helper()
	g := newGuest(t)
	dom, err := g.host.Open(t.Context(), 1)
	must(t, err)
	var file bytes.Buffer
	rec, err := replay.Record(t.Context(), dom, replay.About{Banner: "Linux", Slide: 0x200000}, &file)
	must(t, err)
	_, err = rec.Registers(0)
	must(t, err)
	hits := watch(t, rec, g.space.AddressSpace(), wants, func() { work(g) })
	must(t, rec.Close())
	if l := append(g.guest.Leaks(), g.guest.Accidents()...); l != nil || rec.Early() != "" {
		t.Errorf("left behind: %q; %q", l, rec.Early())
	}
	return hits, file.Bytes()
}

// work calls all functions, with other memory each time; it writes to its own code, and
// reads it.
func work(g *guest) {
	for i := range uint64(5) {
		g.poke64(dataAt, 100+i)
		g.poke64(otherAt, 200+i)
		g.run(sim.Call(sum, i, 2), sim.Call(loads, uint64(dataAt)), sim.Call(store, uint64(dataAt+8), i))
		g.run(sim.Read(codeAt, make([]byte, 8)), sim.Call(store, uint64(codeAt+0x800), i))
	}
}

// play plays a recording to other probes.
func play(t testing.TB, file []byte, wants []want) ([]seen, replay.Stats) {
	t.Helper()
	rec, err := replay.Read(bytes.NewReader(file))
	must(t, err)
	return playOf(t, rec, wants)
}

func playOf(t testing.TB, rec *replay.Recording, wants []want) ([]seen, replay.Stats) {
	t.Helper()
	p := rec.Play(replay.Options{})
	regs, err := p.Registers(0)
	must(t, err)
	hits := watch(t, p, xenevents.AddressSpaceOf(&regs), wants, func() {
		p.Start()
		select {
		case <-p.Done():
		case <-time.After(late):
			t.Fatal("the recording does not end")
		}
	})
	return hits, p.Stats()
}

var all = []want{{at: sum, reads: dataAt}, {at: load, reads: dataAt, returns: true}, {at: store, reads: dataAt + 8}}

// TestPlay: the same probes have the same hits, with the memory of each; some of them have
// theirs.
func TestPlay(t *testing.T) {
	hits, file := record(t, all)
	if len(hits) != 25 || hits[0] != (seen{At: sum, RDI: 0, RSI: 2, Word: 100}) || hits[5].Word != 101 || !hits[2].Return {
		t.Fatalf("%d: %+v", len(hits), hits)
	}
	again, stats := play(t, file, all)
	if !slices.Equal(again, hits) || stats.Missing+stats.Unwanted+stats.Older != 0 || stats.Events < 25 {
		t.Errorf("%+v\nplayed %+v\n%+v", hits, again, stats)
	}
	for _, w := range all {
		var its []seen
		for _, h := range hits {
			if h.At == w.at {
				its = append(its, h)
			}
		}
		one, stats := play(t, file, []want{w})
		if !slices.Equal(one, its) || stats.Unwanted == 0 || stats.Missing != 0 {
			t.Errorf("%+v\nplayed alone %+v\n%+v", its, one, stats)
		}
	}
	none, stats := play(t, file, nil)
	if len(none) != 0 || stats.Events != 0 || stats.Unwanted < 25 {
		t.Errorf("%+v, %+v", none, stats)
	}
	// What would pause the guest goes on.
	paused := slices.Clone(all)
	paused[0].pause = true
	if again, stats := play(t, file, paused); !slices.Equal(again, hits) || stats.Missing != 0 {
		t.Errorf("%+v, %+v", again, stats)
	}
}

// TestOtherMemory: what was read at an event is there then, what was read at another one is
// marked, and what never was is an error that says so.
func TestOtherMemory(t *testing.T) {
	_, file := record(t, all)
	hits, stats := play(t, file, []want{{at: sum, reads: otherAt}})
	if len(hits) != 5 || !strings.Contains(hits[0].Err, "not in the recording: gfn ") || !strings.Contains(hits[0].Err, "at event 1") || stats.Missing != 5 || stats.FirstMissing == nil {
		t.Errorf("%+v, %+v", hits, stats)
	}
	// The stack was read for load's returns only.
	_, file = record(t, []want{{at: sum}, {at: load, reads: otherAt}})
	hits, stats = play(t, file, []want{{at: sum, reads: otherAt}})
	if len(hits) != 5 || !strings.Contains(hits[0].Err, "not in the recording") || hits[1].Word != 200 || hits[4].Word != 203 || stats.Missing != 1 || stats.Older == 0 {
		t.Errorf("%+v, %+v", hits, stats)
	}
	// No place in memory that nobody looked at.
	rec, err := replay.Read(bytes.NewReader(file))
	must(t, err)
	var missing *replay.MissingError
	if _, err := rec.Play(replay.Options{}).ReadGPA(make([]byte, 8), 0x3f0000); !errors.As(err, &missing) || err.Error() != "not in the recording: gfn 0x3f0 before the first event" {
		t.Error(err)
	}
}

// TestPassed: a Player tells of the guest's time, which does not go back.
func TestPassed(t *testing.T) {
	_, file := record(t, all)
	rec, err := replay.Read(bytes.NewReader(file))
	must(t, err)
	if rec.Header.Domain.Name != "guest" || rec.Header.About.Slide != 0x200000 || rec.Early != "" || rec.Events() < 25 || rec.Took <= 0 {
		t.Errorf("%+v, %d events in %v, %q", rec.Header, rec.Events(), rec.Took, rec.Early)
	}
	var last time.Duration
	n := 0
	p := rec.Play(replay.Options{Passed: func(since time.Duration) {
		if since < last {
			t.Errorf("%v after %v", since, last)
		}
		last, n = since, n+1
	}})
	regs, err := p.Registers(0)
	must(t, err)
	watch(t, p, xenevents.AddressSpaceOf(&regs), all, func() { p.Start(); <-p.Done() })
	if n != rec.Events()+1 || last != rec.Took {
		t.Errorf("told %d times, of %v at the end", n, last)
	}
}

// recorded is a host whose domains are recorded.
type recorded struct{ *sim.Host }

func (h recorded) Open(ctx context.Context, id xenevents.DomainID) (xenevents.Domain, error) {
	dom, err := h.Host.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	return replay.Record(ctx, dom, replay.About{}, io.Discard)
}

// TestConformance: a driver that is recorded is the driver that it was.
func TestConformance(t *testing.T) {
	g := newGuest(t)
	g.guest.VCPU(0).Set(func(r *xenevents.Registers) { r.LSTAR = uint64(sum) })
	env := &drivertest.Env{Host: recorded{g.host}, Domain: 1, Touch: func(ctx context.Context) error {
		g.guest.VCPU(0).Run(sim.Repeat(20, sim.Call(sum), sim.Read(sum+5, make([]byte, 8)), sim.WriteCR3(g.space.CR3()|8), sim.WriteCR3(g.space.CR3()))...)
		return g.guest.VCPU(0).Wait(ctx)
	}}
	for _, c := range drivertest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Func(t.Context(), env); err != nil {
				t.Error(err)
			}
			if l := append(g.guest.Leaks(), g.guest.Accidents()...); l != nil {
				t.Errorf("left behind: %q", l)
			}
		})
	}
}

// TestBroken: a recording that is cut off, or changed, is an error that says where; it is
// never a part of one.
func TestBroken(t *testing.T) {
	_, file := record(t, all)
	var format *replay.FormatError
	for _, n := range []int{0, 5, 20, 30, len(file) / 2, len(file) - 1} {
		if _, err := replay.Read(bytes.NewReader(file[:n])); !errors.As(err, &format) || !strings.Contains(err.Error(), "at byte") {
			t.Errorf("%d bytes of %d: %v", n, len(file), err)
		}
	}
	plain := unpack(t, file)
	for _, c := range []struct {
		name string
		text []byte
		says string
	}{
		{"nothing", nil, "at byte 0 (unpacked): unexpected EOF"},
		{"cut off", plain[:len(plain)-3], "unexpected EOF"},
		{"goes on", append(slices.Clone(plain), 'S'), "behind its end"},
		{"no header", plain[bytes.IndexByte(plain, 'R'):], "header"},
		{"another version", bytes.Replace(plain, []byte(`"version":1`), []byte(`"version":7`), 1), "version 7"},
		{"a long record", append(slices.Clone(plain[:head(plain)]), 'S', 0xff, 0xff, 0xff, 0x7f), "a record of 268435455 bytes"},
		{"a kind", append(slices.Clone(plain[:head(plain)]), '?', 0), "a kind that there is not"},
		{"a change of what is not known", append(slices.Clone(plain[:head(plain)]), 'S', 1, 5), "gfn 0x5, which is not known"},
		{"a frame without its blocks", append(slices.Clone(plain[:head(plain)]), 'F', 10, 5, 3, 0, 0, 0, 0, 0, 0, 0, 1), "a frame of another size"},
		{"other events", append(slices.Clone(plain[:head(plain)]), "Z\x0e{\"events\":  9}"...), "it has 0 events, and says 9"},
	} {
		_, err := replay.Read(bytes.NewReader(pack(t, c.text)))
		if !errors.As(err, &format) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// head is how long the header's record is.
func head(plain []byte) int {
	size, n := binary.Uvarint(plain[1:])
	return 1 + n + int(size)
}

const magicSize = 20

func unpack(t testing.TB, file []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(file[magicSize:]))
	must(t, err)
	defer z.Close()
	plain, err := io.ReadAll(z)
	must(t, err)
	return plain
}

func pack(t testing.TB, plain []byte) []byte {
	t.Helper()
	out := bytes.NewBufferString("hprobe recording\x00\x01\r\n")
	z, err := zstd.NewWriter(out)
	must(t, err)
	_, err = z.Write(plain)
	must(t, errors.Join(err, z.Close()))
	return out.Bytes()
}

// slow takes nothing until it may.
type slow struct{ may chan struct{} }

func (s *slow) Write(p []byte) (int, error) {
	if len(p) != magicSize {
		<-s.may
	}
	return len(p), nil
}

// TestSlow: where the file is too slow the recording ends, says so, and the guest does not
// wait; what is there up to then is whole.
func TestSlow(t *testing.T) {
	g := newGuest(t)
	dom, err := g.host.Open(t.Context(), 1)
	must(t, err)
	var file bytes.Buffer
	gate := &slow{may: make(chan struct{})}
	rec, err := replay.Record(t.Context(), dom, replay.About{}, io.MultiWriter(gate, &file))
	must(t, err)
	b := make([]byte, 8)
	for i := uint64(0); rec.Early() == ""; i++ {
		if i > 1<<20 {
			t.Fatal("it takes everything")
		}
		noise := make([]byte, xenevents.PageSize)
		for n := range noise { // what can't be packed
			noise[n] = byte((uint64(n) + i*0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9 >> 56)
		}
		g.poke(dataAt, noise)
		_, err := rec.ReadGPA(b, g.pages[dataAt].GPA())
		must(t, err)
	}
	if !strings.Contains(rec.Early(), "as fast") {
		t.Error(rec.Early())
	}
	_, err = rec.ReadGPA(b, g.pages[otherAt].GPA()) // and goes on as the driver
	must(t, err)
	close(gate.may)
	must(t, rec.Close())
	got, err := replay.Read(&file)
	if err != nil || got.Early != rec.Early() {
		t.Errorf("%v, %+v", err, got)
	}
}

// TestFull: a disk that is full is an error at the end.
func TestFull(t *testing.T) {
	g := newGuest(t)
	dom, err := g.host.Open(t.Context(), 1)
	must(t, err)
	rec, err := replay.Record(t.Context(), dom, replay.About{}, &full{})
	must(t, err)
	if err := rec.Close(); !errors.Is(err, io.ErrShortWrite) || !strings.Contains(err.Error(), "write the recording") {
		t.Error(err)
	}
}

// full takes the first bytes.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	if f.n += len(p); f.n > magicSize {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// TestReads: the recorder gives what the guest has at this moment, also of a frame that it
// read at the same event.
func TestReads(t *testing.T) {
	g := newGuest(t)
	dom, err := g.host.Open(t.Context(), 1)
	must(t, err)
	var file bytes.Buffer
	rec, err := replay.Record(t.Context(), dom, replay.About{}, &file)
	must(t, err)
	at := g.pages[dataAt].GPA()
	b := make([]byte, 8)
	for i := range uint64(3) {
		g.poke64(dataAt, i)
		if _, err := rec.ReadGPA(b, at); err != nil || binary.LittleEndian.Uint64(b) != i {
			t.Errorf("%d: % x, %v", i, b, err)
		}
		if v, err := rec.Load64(at); v != i || err != nil {
			t.Errorf("%d: %d, %v", i, v, err)
		}
	}
	if n, err := rec.ReadGPA(make([]byte, 2*xenevents.PageSize), (1<<20-1)<<12); n != 0 || !errors.Is(err, xenevents.ErrAbsent) {
		t.Error(n, err)
	}
	// What is in hprobe's own frames is nobody's business.
	spare, err := rec.AllocGFN()
	must(t, err)
	_, err = rec.ReadGPA(b, spare.GPA())
	must(t, errors.Join(err, rec.FreeGFN(spare), rec.Close()))
	got, err := replay.Read(&file)
	must(t, err)
	p := got.Play(replay.Options{})
	if _, err := p.ReadGPA(b, spare.GPA()); !errors.As(err, new(*replay.MissingError)) {
		t.Error(err)
	}
	if _, err := p.ReadGPA(b, (1<<20-1)<<12); !errors.Is(err, xenevents.ErrAbsent) {
		t.Error(err)
	}
	var r xenevents.Memory = p
	if _, ok := r.(guestmem.Memory); !ok {
		t.Error("no guest memory")
	}
}

// FuzzRead: whatever a file says is an error, or can be played to its end.
func FuzzRead(f *testing.F) {
	_, file := record(f, all)
	plain := unpack(f, file)
	f.Add(plain)
	f.Add(plain[:head(plain)])
	f.Add([]byte("H\x02{}"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		rec, err := replay.ReadPlain(bytes.NewReader(plain))
		if err != nil {
			if !errors.As(err, new(*replay.FormatError)) {
				t.Fatal(err)
			}
			return
		}
		p := rec.Play(replay.Options{})
		v, err := p.CreateView()
		must(t, errors.Join(err, p.SwitchView(v)))
		events, err := p.Attach(t.Context())
		must(t, err)
		for _, index := range []uint32{0, 3, 4} {
			must(t, events.Subscribe(xenevents.Subscription{Kind: xenevents.KindControlReg, Index: index}))
		}
		p.Start()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-p.Done(); cancel() }()
		var batch [8]xenevents.Event
		for {
			n, err := events.Next(ctx, batch[:])
			if err != nil {
				break
			}
			for i := range n {
				_, _ = p.ReadGPA(make([]byte, 16), batch[i].GFN.GPA()+xenevents.PageSize-8)
				must(t, events.Reply(&batch[i], &xenevents.Reply{Step: xenevents.StepToggle}))
			}
		}
		if s := p.Stats(); s.Events+s.Unwanted > 3*uint64(rec.Events()) {
			t.Errorf("%d events are played as %+v", rec.Events(), s)
		}
	})
}
