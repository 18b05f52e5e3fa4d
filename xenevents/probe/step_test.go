package probe

import (
	"encoding/hex"
	"testing"
)

// forms are instructions, their lengths, and whether they are emulated: what
// Xen's emulator was not seen to do is stepped.
var forms = []struct {
	code    string
	length  int
	emulate bool
}{
	// What functions begin with.
	{"f30f1efa", 4, true},     // endbr64
	{"f30f1efaff", 4, true},   // and something behind it
	{"90", 1, true},           // nop
	{"6690", 2, true},         //
	{"0f1f440000", 5, true},   // nopl 0(rax,rax): ftrace's
	{"660f1f440000", 6, true}, //
	{"662e0f1f840000000000", 10, true},
	{"55", 1, true},         // push rbp
	{"4157", 2, true},       // push r15
	{"5d", 1, true},         // pop rbp
	{"415f", 2, true},       // pop r15
	{"4889e5", 3, true},     // mov rbp,rsp
	{"89f8", 2, true},       // mov eax,edi
	{"4589c8", 3, true},     // mov r8d,r9d
	{"b807000000", 5, true}, // mov eax,7
	{"48b80102030405060708", 10, true},
	{"48c7c001000000", 7, true}, // mov rax,1
	{"4883ec08", 4, true},       // sub rsp,8
	{"4881ec00010000", 7, true}, // sub rsp,256
	{"83c001", 3, true},         // add eax,1
	{"4801c8", 3, true},         // add rax,rcx
	{"31c0", 2, true},           // xor eax,eax
	{"4531c9", 3, true},         // xor r9d,r9d
	{"4883e4f0", 4, true},       // and rsp,-16
	{"4809c8", 3, true},         // or rax,rcx
	{"4839c8", 3, true},         // cmp rax,rcx
	{"83f801", 3, true},         // cmp eax,1
	{"4885c0", 3, true},         // test rax,rax
	{"a901000000", 5, true},     // test eax,1
	{"488d0437", 4, true},       // lea rax,[rdi+rsi]
	{"8d0437", 3, true},         // lea eax,[rdi+rsi]
	{"4c8d542408", 5, true},     // lea r10,[rsp+8]
	{"488d0511223344", 7, true}, // lea rax,[rip+0x44332211]

	// Memory.
	{"488b07", 3, false},             // mov rax,[rdi]
	{"488937", 3, false},             // mov [rdi],rsi
	{"c70000000000", 6, false},       // mov dword [rax],0
	{"a10000000000000000", 9, false}, // mov eax,[0]
	{"65488b042528000000", 9, false}, // mov rax,gs:[0x28]
	{"4803442408", 5, false},         // add rax,[rsp+8]
	{"4883042401", 5, false},         // add qword [rsp],1
	{"483b4708", 4, false},           // cmp rax,[rdi+8]
	{"f6470801", 4, false},           // test byte [rdi+8],1
	{"ff30", 2, false},               // push qword [rax]
	{"8f00", 2, false},               // pop qword [rax]

	// 8 and 16 bits.
	{"b001", 2, true},      // mov al,1
	{"66b80100", 4, true},  // mov ax,1
	{"30c0", 2, true},      // xor al,al
	{"6631c0", 3, true},    // xor ax,ax
	{"3c01", 2, true},      // cmp al,1
	{"84c0", 2, true},      // test al,al
	{"668d0437", 4, false}, // lea ax,[rdi+rsi]
	{"6655", 2, false},     // push bp
	{"665d", 2, false},     // pop bp

	// Constants and segments on the stack.
	{"6a01", 2, true},       // push 1
	{"6801000000", 5, true}, // push 1
	{"0fa0", 2, false},      // push fs
	{"0fa1", 2, false},      // pop fs

	// Other registers.
	{"0f20d8", 3, false}, // mov rax,cr3
	{"0f22d8", 3, false}, // mov cr3,rax
	{"0f21c0", 3, false}, // mov rax,dr0
	{"0f23c0", 3, false}, // mov dr0,rax
	{"8cd8", 2, false},   // mov eax,ds
	{"8ed8", 2, false},   // mov ds,eax

	// What looks like nop and is not, and prefixes that change what it is.
	{"f390", 2, false},       // pause
	{"4990", 2, true},        // xchg r8,rax
	{"0f0d08", 3, false},     // prefetchw [rax]
	{"f090", 2, false},       // lock nop: #UD
	{"f04801c8", 4, false},   // lock add rax,rcx: #UD
	{"f0488d0437", 5, false}, // lock lea: #UD
	{"f24801c8", 4, false},   // xacquire …
	{"f34801c8", 4, false},   // xrelease …

	// Where control goes.
	{"0f8400000000", 6, true}, // je
	{"e300", 2, false},        // jrcxz
	{"e200", 2, false},        // loop
	{"ffe2", 2, true},         // jmp rdx
	{"ff27", 2, false},        // jmp [rdi]
	{"ff17", 2, false},        // call [rdi]
	{"3effe0", 3, false},      // notrack jmp rax
	{"c21000", 3, true},       // ret 16
	{"f3c3", 2, false},        // rep ret
	{"66c3", 2, false},        // ret, of 16 bits on some CPUs
	{"667400", 3, false},      // je, the same
	{"cf", 1, false},          // iret
	{"e800000000", 5, true},   // call
	{"ffd0", 2, true},         // call rax
	{"e900000000", 5, true},   // jmp
	{"eb00", 2, true},         // jmp
	{"7400", 2, true},         // je
	{"c3", 1, true},           // ret
	{"c9", 1, true},           // leave
	{"0f05", 2, false},        // syscall
	{"0f01f8", 3, false},      // swapgs
	{"cd03", 2, false},        // int 3
	{"0f0b", 2, false},        // ud2
	{"f4", 1, false},          // hlt

	// Registers alone.
	{"c1e005", 3, true},     // shl eax,5
	{"48d3e8", 3, true},     // shr rax,cl
	{"d1f8", 2, true},       // sar eax,1
	{"66c1c008", 4, true},   // rol ax,8
	{"480fabc1", 4, true},   // bts rcx,rax
	{"480fbae221", 5, true}, // bt rdx,33
	{"0fc8", 2, true},       // bswap eax
	{"660fc8", 3, false},    // bswap ax: nobody knows
	{"4898", 2, true},       // cdqe
	{"6699", 2, false},      // cwd
	{"00ed", 2, true},       // add ch,ch
	{"6630c0", 3, false},    // xor al,al with a prefix that says nothing
	{"6748ffc0", 4, false},  // inc rax, the same
	{"2e48ffc0", 4, false},  //
	{"d1d0", 2, false},      // rcl eax,1
	{"480fafc1", 4, false},  // imul rax,rcx: flags
	{"f7e1", 2, false},      // mul ecx
	{"f7f1", 2, false},      // div ecx
	{"0fbcc1", 3, false},    // bsf eax,ecx
	{"0fa4c805", 4, false},  // shld eax,ecx,5
	{"480fc1c8", 4, false},  // xadd rax,rcx
	{"480fabc7", 4, true},   // bts rdi,rax
	{"480fab07", 4, false},  // bts [rdi],rax
	{"0f9407", 3, false},    // sete [rdi]
	{"480f440f", 4, false},  // cmove rcx,[rdi]
	{"0fb607", 3, false},    // movzx eax,byte [rdi]
	{"48870f", 3, false},    // xchg [rdi],rcx

	// The rest.
	{"4811c8", 3, true},      // adc rax,rcx
	{"4819c8", 3, true},      // sbb rax,rcx
	{"48ffc0", 3, true},      // inc rax
	{"48f7d8", 3, true},      // neg rax
	{"4887c8", 3, true},      // xchg rax,rcx
	{"480f44c1", 4, true},    // cmove rax,rcx
	{"0f94c0", 3, true},      // sete al
	{"4863c7", 3, true},      // movsxd rax,edi
	{"0fb6c0", 3, true},      // movzx eax,al
	{"aa", 1, false},         // stosb
	{"f0480fc11f", 5, false}, // lock xadd [rdi],rbx
	{"0fa2", 2, false},       // cpuid
	{"0f31", 2, false},       // rdtsc
	{"9c", 1, false},         // pushf
	{"9d", 1, false},         // popf
	{"fa", 1, false},         // cli
	{"f30f10c1", 4, false},   // movss xmm0,xmm1
}

func TestForms(t *testing.T) {
	for _, f := range forms {
		code := unhex(t, f.code)
		in, err := decode(code)
		if err != nil || in.length != f.length || in.emulate != f.emulate || in.text == "" {
			t.Errorf("%s: %q of %d bytes, emulated %v, %v; want %d, %v", f.code, in.text, in.length, in.emulate, err, f.length, f.emulate)
		}
		// What follows in memory changes nothing.
		if long, err := decode(append(code[:f.length:f.length], 0x90, 0x90, 0xcc, 0xf3, 0xff, 0xff, 0, 1)); err != nil || long != in {
			t.Errorf("%s, with more behind it: %+v, %v", f.code, long, err)
		}
	}
}

// TestRepeated: what a step does one repetition of.
func TestRepeated(t *testing.T) {
	for code, want := range map[string]bool{
		"f3a4": true, "f348a5": true, "66f3ab": true, "f3aa": true, "f2ae": true, "f3a6": true, "f3ad": true, "f36c": true,
		"a4": false, "48ab": false, "f390": false, "f3c3": false, "f3a8": false, "f30fb8c1": false, "f30f1efa": false, "f348a9": false,
	} {
		if in, err := decode(append(unhex(t, code), 0, 0, 0, 0)); err == nil && in.repeats != want || err != nil && want {
			t.Errorf("%s: %+v, %v", code, in, err)
		}
	}
}

// TestVectors: x86asm is not sure of their length, which is no matter for a step.
func TestVectors(t *testing.T) {
	for _, code := range []string{"c5f877", "c4e279180f", "62f17c481000"} {
		if in, err := decode(unhex(t, code)); err != nil || in.emulate {
			t.Errorf("%s: %+v, %v", code, in, err)
		}
	}
}

func TestNoInstruction(t *testing.T) {
	for _, code := range []string{
		"", "e8", "e8000000", "0f", "48", "66", "f30f1e", "48b801", "b8000000", // cut off
		"0f1efa", "660f1efa", "f30f1efb", "06", "8dc0", // unknown
		"6666666666666666666666666666666690", // longer than any
	} {
		if in, err := decode(unhex(t, code)); err == nil {
			t.Errorf("%q: %+v", code, in)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
