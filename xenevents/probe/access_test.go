package probe

import (
	"fmt"
	"testing"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
)

var accessRegs = xenevents.Registers{RAX: 0x1000, RCX: 2, RBX: 0x2000, RSP: 0x8000, RBP: 0x9000, RSI: 0x5000, RDI: 0x6000, R8: ^uint64(0), R12: 1, RIP: 0x100000, GSBase: 0xffff_8880_0000_0000}

// TestAccesses: what instructions access, by Intel's manual.
func TestAccesses(t *testing.T) {
	for _, c := range []struct {
		code []byte
		want string
	}{
		{[]byte{0x48, 0x89, 0x47, 0x08}, "6008+8-w-"},                                  // mov [rdi+8],rax
		{[]byte{0x8a, 0x07}, "6000+1r--"},                                              // mov al,[rdi]
		{[]byte{0x66, 0xc7, 0x07, 1, 0}, "6000+2-w-"},                                  // mov word [rdi],1
		{[]byte{0x48, 0x01, 0x34, 0x8f}, "6008+8rw-"},                                  // add [rdi+rcx*4],rsi
		{[]byte{0x48, 0x39, 0x37}, "6000+8r--"},                                        // cmp [rdi],rsi
		{[]byte{0x48, 0x87, 0x37}, "6000+8rw-"},                                        // xchg [rdi],rsi
		{[]byte{0xf0, 0x48, 0x0f, 0xc1, 0x37}, "6000+8rw-"},                            // lock xadd
		{[]byte{0x48, 0x8b, 0x05, 0x10, 0, 0, 0}, "100017+8r--"},                       // mov rax,[rip+0x10]
		{[]byte{0x65, 0x48, 0xff, 0x04, 0x25, 0x10, 0, 0, 0}, "ffff888000000010+8rw-"}, // inc gs:[0x10]
		{[]byte{0x55}, "7ff8+8-w-"},                                                    // push rbp
		{[]byte{0xff, 0x37}, "6000+8r-- 7ff8+8-w-"},                                    // push [rdi]
		{[]byte{0x8f, 0x07}, "6000+8-w- 8000+8r--"},                                    // pop [rdi]
		{[]byte{0xe8, 0, 0, 0, 0}, "7ff8+8-w-"},                                        // call
		{[]byte{0xff, 0x17}, "6000+8r-- 7ff8+8-w-"},                                    // call [rdi]
		{[]byte{0xc3}, "8000+8r--"}, {[]byte{0xc9}, "9000+8r--"},                       // ret, leave
		{[]byte{0xf3, 0x48, 0xa5}, "6000+8-w- 5000+8r--"},                  // rep movsq
		{[]byte{0xaa}, "6000+1-w-"}, {[]byte{0xa6}, "5000+1r-- 6000+1r--"}, // stosb, cmpsb
		{[]byte{0x0f, 0x11, 0x07}, "6000+16-w-"}, {[]byte{0x0f, 0x10, 0x07}, "6000+16r--"}, // movups
		{[]byte{0x48, 0x0f, 0xab, 0x0f}, "6000+8rw-"},                                                  // bts [rdi],rcx
		{[]byte{0x4c, 0x0f, 0xab, 0x07}, "5ff8+8rw-"},                                                  // bts [rdi],r8: bit -1
		{[]byte{0x48, 0x8d, 0x07}, ""}, {[]byte{0x0f, 0x1f, 0x00}, ""}, {[]byte{0x0f, 0x18, 0x0f}, ""}, // lea, nop, prefetch
		{[]byte{0x67, 0x8b, 0x04, 0x24}, "8000+4r--"}, // mov eax,[esp]
	} {
		x, err := x86asm.Decode(c.code, 64)
		if err != nil {
			t.Fatalf("% x: %v", c.code, err)
		}
		got := ""
		for i, a := range accessesOf(&x, &accessRegs, nil) {
			if i > 0 {
				got += " "
			}
			got += fmt.Sprintf("%x+%d%v", uint64(a.at), a.n, a.kind)
		}
		if got != c.want {
			t.Errorf("%v accesses %q, not %q", x, got, c.want)
		}
	}
	regs := accessRegs
	regs.RCX = 0
	if x, err := x86asm.Decode([]byte{0xf3, 0xaa}, 64); err != nil || len(accessesOf(&x, &regs, nil)) != 0 {
		t.Errorf("rep stosb of no bytes accesses %v, %v", accessesOf(&x, &regs, nil), err)
	}
}

func TestPlainStores(t *testing.T) {
	regs := accessRegs
	regs.RAX = 0x1122334455667788
	for _, c := range []struct {
		code []byte
		want uint64
		ok   bool
	}{
		{[]byte{0x48, 0x89, 0x07}, 0x1122334455667788, true}, {[]byte{0x89, 0x07}, 0x55667788, true}, {[]byte{0x66, 0x89, 0x07}, 0x7788, true},
		{[]byte{0x88, 0x07}, 0x88, true}, {[]byte{0x88, 0x27}, 0x77, true}, {[]byte{0x40, 0x88, 0x37}, 0, true},
		{[]byte{0xc6, 0x07, 0x80}, 0x80, true}, {[]byte{0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff}, ^uint64(0), true}, {[]byte{0x0f, 0xc3, 0x07}, 0x55667788, true},
		{[]byte{0x48, 0x01, 0x07}, 0, false}, {[]byte{0x48, 0x8b, 0x07}, 0, false}, {[]byte{0x8c, 0x17}, 0, false}, {[]byte{0x55}, 0, false}, {[]byte{0x48, 0x87, 0x07}, 0, false}, {[]byte{0xaa}, 0, false},
	} {
		x, err := x86asm.Decode(c.code, 64)
		if err != nil {
			t.Fatalf("% x: %v", c.code, err)
		}
		if got, ok := plainStore(&x, &regs); got != c.want || ok != c.ok {
			t.Errorf("%v stores %#x, %v; want %#x, %v", x, got, ok, c.want, c.ok)
		}
	}
}

// FuzzAccesses: the instruction is the guest's, and may be anything. There is room for
// all accesses of one.
func FuzzAccesses(f *testing.F) {
	for _, seed := range [][]byte{{0x48, 0x89, 0x07}, {0xf3, 0x48, 0xa5}, {0xff, 0x37}, {0x65, 0x48, 0xff, 0x04, 0x25, 0x10, 0, 0, 0}, {0x4c, 0x0f, 0xab, 0x07}, {0xcf}} {
		f.Add(seed, uint64(1), uint64(0x8000))
	}
	f.Fuzz(func(t *testing.T, code []byte, a, b uint64) {
		regs := accessRegs
		regs.RAX, regs.RDI, regs.RSP = a, b, a^b
		x, err := x86asm.Decode(code, 64)
		if err != nil || x.Op == 0 {
			return
		}
		all := accessesOf(&x, &regs, nil)
		if len(all) >= maxAccesses {
			t.Errorf("%v: %d accesses leave no room for a fault's", x, len(all))
		}
		for _, one := range all {
			if one.n < 1 || one.n > xenevents.PageSize || one.kind == 0 {
				t.Errorf("%v: %+v", x, one)
			}
		}
		if value, ok := plainStore(&x, &regs); ok && x.MemBytes < 8 && value>>(8*x.MemBytes) != 0 {
			t.Errorf("%v stores %#x", x, value)
		}
	})
}
