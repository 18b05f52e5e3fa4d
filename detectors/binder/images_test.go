package binder

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// Where the kernel of an imageBench has what: a page of code, and one for each process
// with all that the kernel keeps of it.
const (
	mapsFileAt   = function
	startsTaskAt = function + 0x10
	endsMemoryAt = function + 0x20
	processesAt  = 0xffff888200000000
	filesPage    = 0xffff888300000000
	rootsAt      = 0xffff888400000000
	// In a process's page.
	taskIn, mmIn, vmaIn = 0, 0x400, 0x600
	// The image, in a process and in its file: a function at its start.
	imageAt   xenevents.GVA = 0x7f00_0000_1000
	imageOff                = 0x3000
	placeIn                 = 0x110
	otherFile               = filesPage + 0x40
)

var sumCode = []byte{0x48, 0x8d, 0x04, 0x37, 0xc3} // lea rax,[rdi+rsi]; ret

// imageBench is a guest with processes that have an image mapped, or not.
type imageBench struct {
	*bench
	t      *testing.T
	kernel *sim.Space
	code   xenevents.GFN // the image's page, which they share
	pages  []xenevents.GFN
	spaces []*sim.Space
	shared map[xenevents.GVA]xenevents.GFN
}

func newImageBench(t *testing.T, comms ...string) *imageBench {
	t.Helper()
	b := &imageBench{bench: &bench{}, t: t, shared: map[xenevents.GVA]xenevents.GFN{}}
	p := isf.NewBuilder()
	p.Meta.Banner = "Linux version 6"
	p.Symbols = []isf.Symbol{{Name: "entry_SYSCALL_64", Addr: entry}, {Name: mapsFile, Addr: mapsFileAt}, {Name: startsTask, Addr: startsTaskAt}, {Name: endsMemory, Addr: endsMemoryAt}, {Name: "linux_banner", Addr: bannerAt},
		{Name: "init_top_pgt", Addr: rootAt}, {Name: "current_task", Addr: 8}, {Name: "init_task", Addr: processesAt - slide}}
	fields := func(name string, all map[string]uint64) {
		u := isf.UserType{Kind: isf.Struct, Size: 256, Fields: map[string]isf.Field{}}
		for f, at := range all {
			u.Fields[f] = isf.Field{Offset: at, Type: isf.Type{Kind: isf.Base, Name: "unsigned long"}}
		}
		p.Users[name] = u
	}
	in := func(of, name, kind string, at uint64) {
		p.Users[of].Fields[name] = isf.Field{Offset: at, Type: isf.Type{Kind: isf.Struct, Name: kind}}
	}
	fields("task_struct", map[string]uint64{"pid": 0, "tgid": 4, "comm": 8, "tasks": 0x20, "mm": 0x30, "group_leader": 0x38, "start_boottime": 0x40})
	fields("mm_struct", map[string]uint64{"pgd": 0, "mmap": 8})
	fields("vm_area_struct", map[string]uint64{"vm_start": 0, "vm_end": 8, "vm_next": 0x10, "vm_mm": 0x18, "vm_flags": 0x20, "vm_pgoff": 0x28, "vm_file": 0x30})
	fields("file", nil)
	in("file", "f_path", "path", 0)
	fields("path", map[string]uint64{"mnt": 0, "dentry": 8})
	fields("dentry", map[string]uint64{"d_parent": 0})
	in("dentry", "d_name", "qstr", 8)
	fields("qstr", map[string]uint64{"len": 4, "name": 8})
	fields("mount", map[string]uint64{"mnt_parent": 0, "mnt_mountpoint": 8})
	in("mount", "mnt", "vfsmount", 0x10)
	fields("vfsmount", map[string]uint64{"mnt_root": 0})
	profile, err := p.Profile()
	if err != nil {
		t.Fatal(err)
	}
	h := sim.NewHost()
	b.g = h.Add(sim.Config{ID: 5, Name: "guest"})
	b.kernel = b.g.NewSpace()
	code := make([]byte, 4096)
	for _, at := range []uint64{mapsFileAt, startsTaskAt, endsMemoryAt} {
		copy(code[at&0xfff:], []byte{0x55, 0x5d, 0xc3}) // push rbp; pop rbp; ret
	}
	b.shared[function&^0xfff+slide] = b.kernel.Page(function&^0xfff+slide, code...)
	b.shared[bannerAt+slide] = b.kernel.Page(bannerAt+slide, []byte("Linux version 6\n\x00")...)
	b.kernel.Map(rootAt+slide, xenevents.GPA(b.kernel.CR3()).GFN())
	b.shared[stack-0x1000] = b.kernel.Page(stack - 0x1000)
	b.shared[percpu] = b.kernel.Page(percpu)
	b.code = b.g.Frame()
	b.g.Poke(b.code.GPA()+placeIn, sumCode)
	b.files()
	for i, comm := range comms {
		b.process(i, len(comms), comm)
	}
	for i, gfn := range b.pages { // the kernel's half is in each space
		for _, space := range b.spaces {
			space.Map(processesAt+xenevents.GVA(i)<<12, gfn)
		}
	}
	b.g.VCPU(0).Set(func(r *xenevents.Registers) {
		r.CR3, r.LSTAR, r.RSP, r.GSBase = b.kernel.CR3(), entry+slide, stack-64, percpu
	})
	dom, err := h.Open(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := guestos.FindKernel(dom, 1, profile)
	if err != nil {
		t.Fatal(err)
	}
	if b.engine, err = probe.New(dom, probe.Options{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(b.engine.Run(ctx), dom.Close()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if l := append(b.g.Leaks(), b.g.Accidents()...); l != nil {
			t.Errorf("left behind: %q", l)
		}
	})
	<-b.engine.Ready()
	b.binder = New(b.engine, kernel, xenevents.DomainInfo{ID: 5, Name: "guest"}, b)
	return b
}

func words(all ...uint64) (b []byte) {
	for _, v := range all {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// files makes /lib/image.so, and /lib/other.so.
func (b *imageBench) files() {
	const root, lib, one, two, mount, names = filesPage + 0x100, filesPage + 0x140, filesPage + 0x180, filesPage + 0x1c0, filesPage + 0x200, filesPage + 0x300
	page := make([]byte, 4096)
	put := func(at uint64, p []byte) { copy(page[at-filesPage:], p) }
	put(filesPage, words(mount+0x10, one))
	put(otherFile, words(mount+0x10, two))
	put(root, words(root, 1<<32, names))
	put(lib, words(root, 3<<32, names+0x20))
	put(one, words(lib, 8<<32, names+0x40))
	put(two, words(lib, 8<<32, names+0x60))
	put(mount, words(mount, root, root))
	put(names, []byte("/"))
	put(names+0x20, []byte("lib"))
	put(names+0x40, []byte("image.so"))
	put(names+0x60, []byte("other.so"))
	b.kernel.Page(filesPage, page...)
}

// process makes the i'th of n: its number is i, the first is a thread of the kernel. It
// has the image mapped in memory, but not in the kernel's list.
func (b *imageBench) process(i, n int, comm string) {
	at := func(i int) uint64 { return processesAt + uint64(i%n)<<12 }
	page := make([]byte, 4096)
	copy(page, words(uint64(i)<<32|uint64(i)))
	copy(page[8:], comm)
	copy(page[0x20:], words(at(i+1)+0x20, 0))
	copy(page[0x38:], words(at(i), uint64(7000+i)))
	space := b.g.NewSpace()
	if i > 0 {
		copy(page[0x30:], words(at(i)+mmIn))
		copy(page[mmIn:], words(rootsAt+uint64(i)<<12))
		copy(page[vmaIn:], words(uint64(imageAt), uint64(imageAt)+0x2000, 0, at(i)+mmIn, 4, imageOff>>12, filesPage))
		space.Map(imageAt, b.code)
		space.Page(imageAt + 0x10_0000) // it has other memory as well
		b.kernel.Map(xenevents.GVA(rootsAt+uint64(i)<<12), xenevents.GPA(space.CR3()).GFN())
	}
	gfn := b.kernel.Page(xenevents.GVA(at(i)), page...)
	for at, gfn := range b.shared {
		space.Map(at, gfn)
	}
	b.spaces, b.pages = append(b.spaces, space), append(b.pages, gfn)
}

// maps has the kernel's list of a process's mappings hold the image, or not.
func (b *imageBench) maps(i int, has bool) {
	first := uint64(0)
	if has {
		first = processesAt + uint64(i)<<12 + vmaIn
	}
	b.g.Poke(b.pages[i].GPA()+mmIn+8, words(first))
}

// in runs a function in a process.
func (b *imageBench) in(i int, at xenevents.GVA, args ...uint64) (rax uint64) {
	b.t.Helper()
	b.g.Poke(b.shared[percpu].GPA()+8, words(processesAt+uint64(i)<<12))
	v := b.g.VCPU(0)
	v.Run(sim.WriteCR3(b.spaces[i].CR3()), sim.Call(at, args...), sim.See(func(r xenevents.Registers) { rax = r.RAX }))
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := v.Wait(ctx); err != nil {
		b.t.Fatal(err)
	}
	return rax
}

func (b *imageBench) calls(i, n int) {
	b.t.Helper()
	for range n {
		if got := b.in(i, imageAt+placeIn, 3, 4); got != 7 {
			b.t.Errorf("in process %d the function returned %d", i, got)
		}
	}
}

// mmaps is what the kernel does when a process has mapped the image.
func (b *imageBench) mmaps(i int) {
	b.maps(i, true)
	b.in(i, mapsFileAt+slide, processesAt+uint64(i)<<12+vmaIn)
}

// imaged is a detector of one place in an image.
type imaged struct {
	spec detectors.ProbeSpec
}

func (d *imaged) Name() string                  { return "imaged" }
func (d *imaged) Probes() []detectors.ProbeSpec { return []detectors.ProbeSpec{d.spec} }

var theImage = &detectors.ImagePlace{Offset: imageOff + placeIn, Code: sumCode}

func (b *imageBench) bind(spec detectors.ProbeSpec) *Binding {
	b.t.Helper()
	spec.Name = spec.At
	bound, err := b.binder.Bind(b.t.Context(), &imaged{spec})
	if err != nil {
		b.t.Fatal(err)
	}
	return bound
}

func (b *imageBench) is(bound *Binding, members int, hits uint64) {
	b.t.Helper()
	all, _, err := b.engine.Probes(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range all {
		if s.ID == bound.Probes[0].ID && (s.Members != members || s.Hits != hits || s.Missed != 0) {
			b.t.Errorf("%d members, %d hits, missed %d (%s); want %d and %d", s.Members, s.Hits, s.Missed, s.MissedWhy, members, hits)
		}
	}
}

// TestImage: those that have it, those that map it later, and those that are born with
// it; and when nobody asks any more nothing is left.
func TestImage(t *testing.T) {
	b := newImageBench(t, "kernel", "one", "two", "three")
	b.maps(1, true)
	b.maps(2, false)
	var who []string
	bound := b.bind(detectors.ProbeSpec{At: "image:/lib/image.so!sum", Image: theImage, Handle: func(h detectors.Hit) detectors.Outcome {
		p, _ := h.Process()
		a, err := h.Arg(1)
		who = append(who, fmt.Sprint(p.Comm, " ", p.PID, " ", a, " ", err))
		return detectors.Outcome{}
	}})
	b.is(bound, 1, 0)
	if bound.Probes[0].Place == nil || bound.Probes[0].Place.Offset != theImage.Offset {
		t.Errorf("%+v", bound.Probes[0])
	}
	b.calls(1, 2)
	b.calls(2, 3)
	b.is(bound, 1, 2)
	b.mmaps(2)
	b.mmaps(2) // twice is once
	b.calls(2, 3)
	b.is(bound, 2, 5)
	b.in(2, startsTaskAt+slide, processesAt+2<<12) // a thread
	b.is(bound, 2, 5)
	b.maps(3, true)
	b.in(2, startsTaskAt+slide, processesAt+3<<12) // a fork
	b.calls(3, 1)
	b.is(bound, 3, 6)
	b.in(2, endsMemoryAt+slide, processesAt+3<<12+mmIn) // one exits
	b.is(bound, 2, 6)
	if len(who) != 6 || who[0] != "one 1 4 <nil>" || who[5] != "three 3 4 <nil>" {
		t.Errorf("%q", who)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	if all, stats, err := b.engine.Probes(t.Context()); err != nil || len(all) != 0 || stats.Tables != 0 {
		t.Errorf("left: %+v, %+v, %v", all, stats, err)
	}
	b.calls(1, 1)
}

// TestImageOfSome: by name, by number, and not what is no code or another file's.
func TestImageOfSome(t *testing.T) {
	b := newImageBench(t, "kernel", "one", "two", "three", "two")
	for i := 1; i < 5; i++ {
		b.maps(i, i == 3)
	}
	comm := b.bind(detectors.ProbeSpec{At: "image:image.so!sum", Image: theImage, Comm: "two"})
	pid := b.bind(detectors.ProbeSpec{At: "image:/lib/image.so+0x3110", PID: 1})
	other := b.bind(detectors.ProbeSpec{At: "image:/elsewhere/image.so!sum", Image: theImage})
	another := b.bind(detectors.ProbeSpec{At: "image:other.so!sum", Image: theImage})
	for i := 1; i < 5; i++ {
		b.mmaps(i)
		b.calls(i, i)
	}
	b.is(comm, 2, 6)
	b.is(pid, 1, 1)
	b.is(other, 0, 0)
	b.is(another, 0, 0)
	b.in(1, startsTaskAt+slide, processesAt+2<<12) // its child is another process
	b.is(pid, 1, 1)
	for _, change := range []struct {
		at    int
		value uint64
	}{{vmaIn + 0x20, 1}, {vmaIn + 0x28, imageOff>>12 + 1}, {vmaIn + 0x30, 0}, {vmaIn + 0x30, otherFile}, {vmaIn + 8, 0}} { // data, another part, no file, another file, nonsense
		was := b.g.Peek(b.pages[2].GPA()+xenevents.GPA(change.at), 8)
		b.g.Poke(b.pages[2].GPA()+xenevents.GPA(change.at), words(change.value))
		fresh := b.bind(detectors.ProbeSpec{At: "image:/lib/image.so!sum", Image: theImage, Comm: "two"})
		b.in(2, mapsFileAt+slide, processesAt+2<<12+vmaIn)
		if n := b.members(fresh); n != 1 { // the other one called so
			t.Errorf("with %#x at %#x: %d members", change.value, change.at, n)
		}
		b.g.Poke(b.pages[2].GPA()+xenevents.GPA(change.at), was)
	}
	if b.binder.Ended(t.Context(), 1) || !b.binder.Ended(t.Context(), 77) {
		t.Error("who has ended")
	}
}

func (b *imageBench) members(bound *Binding) int {
	all, _, err := b.engine.Probes(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range all {
		if s.ID == bound.Probes[0].ID {
			return s.Members
		}
	}
	return -1
}

// TestImageRefused: what can't be has a reason and a way out, and nothing is left.
func TestImageRefused(t *testing.T) {
	b := newImageBench(t, "kernel", "one", "two")
	b.maps(1, true)
	b.maps(2, false)
	for want, spec := range map[string]detectors.ProbeSpec{
		"--image-file":       {At: "image:/lib/image.so!sum"},
		"no process has":     {At: "image:/lib/nosuch.so!sum"},
		"no process 9":       {At: "image:/lib/image.so!sum", PID: 9, Image: theImage},
		"first instruction":  {At: "image:/lib/image.so!sum+1", Image: theImage, Return: true},
		"no place in a prog": {At: "image:lib/image.so!sum"},
	} {
		spec.Name = "x"
		if _, err := b.binder.Bind(t.Context(), &imaged{spec}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := b.binder.Bind(t.Context(), &imaged{detectors.ProbeSpec{At: "image:/lib/image.so!sum"}}); err == nil || errors.Is(err, image.ErrNoSymbol) {
		t.Error(err)
	}
	if all, _, err := b.engine.Probes(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("left: %+v, %v", all, err)
	}
}

func TestParseImage(t *testing.T) {
	for text, want := range map[string]Location{
		"image:/bin/sh!main":               {Image: "/bin/sh", Symbol: "main"},
		"image:libc.so.6!malloc+0x10":      {Image: "libc.so.6", Symbol: "malloc", Offset: 16},
		"image:/usr/lib/libstdc++.so.6!f":  {Image: "/usr/lib/libstdc++.so.6", Symbol: "f"},
		"image:/a!b/c!f":                   {Image: "/a!b/c", Symbol: "f"},
		"image:/bin/x!main.(*T).Do":        {Image: "/bin/x", Symbol: "main.(*T).Do"},
		"image:/bin/sh+0x1234":             {Image: "/bin/sh", Offset: 0x1234},
		"image:/usr/lib/libstdc++.so+4096": {Image: "/usr/lib/libstdc++.so", Offset: 4096},
	} {
		if got, err := ParseLocation(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"image:", "image:/bin/sh", "image:/bin/sh!", "image:!f", "image:/bin/!f", "image:bin/sh!f", "image:/bin/sh!a b", "image:/bin/sh!f+x", "image:/bin/sh+x", "image:/bin/sh+0x20000000000",
		"image:/bin/sh!f+0x200000", "image:/bin/sh!" + strings.Repeat("f", 513), "image:" + strings.Repeat("/f", 4096) + "!f"} {
		if got, err := ParseLocation(text); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
