package probe

import (
	"github.com/hprobe/hprobe/xenevents"
)

// call is one call of a function that is probed for its return: made at the
// entry, used up by the return. What tells it from others is where its return
// address is: a thread has its own stack, and a recursion its own place there.
type call struct {
	user  *probe
	entry uint64 // RIP there
	seq   uint64 // of the entry's hit
	site  *site
	frame
	since   uint64 // ticks, at the entry
	checked uint64 // when its stack was seen to be there

	next         *call // in the bucket
	older, newer *call // of all, by checked
}

// frame is what is known of a call at its entry, and must be so at its return.
type frame struct {
	slot xenevents.GVA // where the return address is
	// space is empty in the kernel's half, which all spaces share: a call there may
	// end in another space than it began in (execve).
	space  xenevents.AddressSpace
	thread uint64
	kept   [6]uint64 // RBP, then what else a System V function leaves as it was
}

// noThread is the thread of a hit whose Request has no way to tell, or could not.
const noThread = ^uint64(0)

// frameOf is the frame of the function that a vCPU is at the first instruction
// of, if slot is its RSP; or that it just returned from, if slot is 8 below.
func frameOf(h *Hit, slot uint64) frame {
	f := frame{slot: xenevents.GVA(slot), thread: noThread}
	if !kernelHalf(f.slot) {
		f.space = h.Space
	}
	r := h.Regs
	f.kept = [6]uint64{r.RBP, r.RBX, r.R12, r.R13, r.R14, r.R15}
	return f
}

// kernelHalf says whether an address is in the half that is the kernel's in every
// 64-bit system.
func kernelHalf(at xenevents.GVA) bool { return int64(at) < 0 }

// sameThread says whether two frames at one place may be of one thread. Stacks
// are used again: by the thread that comes after one that was killed.
func (f *frame) sameThread(o *frame) bool {
	if f.thread != o.thread && f.thread != noThread && o.thread != noThread {
		return false
	}
	if kernelHalf(f.slot) {
		return f.kept == o.kept
	}
	// Not every language keeps the others.
	return f.kept[0] == o.kept[0]
}

// buckets is how many chains a callTable has: a power of 2.
const buckets = 1024

// callTable holds the calls that have not returned, no more than max. It does
// not allocate once it has been as full as it gets.
type callTable struct {
	max, n         int
	chains         [buckets]*call // by page of the stack, the youngest first
	oldest, newest *call
	free           *call
}

func (t *callTable) chain(f *frame) **call {
	page := uint64(f.slot)>>xenevents.PageShift ^ uint64(f.space.Root)<<8
	return &t.chains[page*0x9e37_79b9_7f4a_7c15>>54%buckets]
}

// push adds a call.
func (t *callTable) push(c call) {
	p := t.free
	if p == nil {
		block := make([]call, 64)
		for i := range block {
			block[i].next, t.free = t.free, &block[i]
		}
		p = t.free
	}
	t.free = p.next
	*p = c
	head := t.chain(&p.frame)
	p.next, *head = *head, p
	t.append(p)
	t.n++
	p.site.calls++
}

func (t *callTable) append(p *call) {
	p.older, p.newer = t.newest, nil
	if p.older != nil {
		p.older.newer = p
	} else {
		t.oldest = p
	}
	t.newest = p
}

func (t *callTable) unlink(c *call) {
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		t.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		t.newest = c.older
	}
}

// renew makes a call the newest.
func (t *callTable) renew(c *call, now uint64) {
	t.unlink(c)
	t.append(c)
	c.checked = now
}

// drop takes a call away. It is of no use any more then.
func (t *callTable) drop(c *call) {
	at := t.chain(&c.frame)
	for *at != c {
		at = &(*at).next
	}
	*at = c.next
	t.unlink(c)
	t.n--
	c.site.calls--
	*c = call{next: t.free}
	t.free = c
}

// onStack calls each for all calls whose slots are in the page of the stack that
// f's is in: two stacks do not share one. each may drop its call.
func (t *callTable) onStack(f *frame, each func(c *call)) {
	for c := *t.chain(f); c != nil; {
		next := c.next
		if c.space == f.space && c.slot.Page() == f.slot.Page() {
			each(c)
		}
		c = next
	}
}
