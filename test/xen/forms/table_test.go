package forms

import (
	"encoding/hex"
	"testing"
)

func TestCases(t *testing.T) {
	all, err := Cases()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 1000 {
		t.Errorf("%d cases only", len(all))
	}
	keys, end := map[string]bool{}, uint64(CodeAt)
	for i, c := range all {
		if c.At < end || len(c.Code) != len(c.Form.Code) || len(c.Code) > 15 {
			t.Errorf("case %d, %s, is at %#x, before %#x", i, c.Name(), c.At, end)
		}
		if crosses := c.At>>12 != (c.At+uint64(len(c.Code))-1)>>12; crosses != c.Straddles {
			t.Errorf("case %d, %s at %#x: across pages %v", i, c.Name(), c.At, crosses)
		}
		end = c.At + pad + 2
		key := c.Form.Key()
		if keys[key] && !c.Straddles {
			t.Errorf("%s is there twice", key)
		}
		keys[key] = keys[key] || !c.Straddles
	}
	for key := range EmulatorWrong("") {
		if !keys[key] {
			t.Errorf("emulator.txt has %q, which is no form of the table", key)
		}
	}
}

func TestDecode(t *testing.T) {
	for code, want := range map[string]string{
		"488b4708":         "MOV 8b r64 m64[base]",
		"488b0511223344":   "MOV 8b r64 m64[rip]",
		"65488b0411":       "65 MOV 8b r64 m64[base+index]",
		"8b04ad401ce682":   "MOV 8b r32 m32[index]",
		"8b042540000000":   "MOV 8b r32 m32[abs]",
		"f0480fc11f":       "f0 XADD 0fc1 m64[base] r64",
		"88700e":           "MOV 88 m8[base] r8h",
		"4883c001":         "ADD 83/0 r64 imm",
		"7405":             "JE 74 rel8",
		"0f8405000000":     "JE 0f84 rel32",
		"f30f1efa":         "endbr64",
		"c3":               "RET c3",
		"660f6f85e0feffff": "66 MOVDQA 0f6f xmm m128[base]",
		"c5f877":           "", // VEX
		"62f17c481000":     "", // EVEX
		"f3":               "",
		"":                 "",
		"0f":               "",
		"8b":               "",
	} {
		b, err := hex.DecodeString(code)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		f, err := Decode(b)
		if err == nil {
			got = f.Key()
		}
		if got != want {
			t.Errorf("%s is %q (%v), not %q", code, got, err, want)
		}
	}
}
