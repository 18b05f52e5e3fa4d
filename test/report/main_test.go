package main

import (
	"strings"
	"testing"
)

func run(t *testing.T, input string, strict bool) (string, bool) {
	t.Helper()
	var out strings.Builder
	r := newReport(&out)
	if err := r.read(strings.NewReader(input)); err != nil {
		t.Fatal(err)
	}
	ok := r.summary(strict)
	return out.String(), ok
}

const passed = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"pass","Package":"p","Elapsed":0.2}
`

func TestCounts(t *testing.T) {
	out, ok := run(t, passed, true)
	if !ok || !strings.HasSuffix(out, "1 passed, 0 failed, 0 skipped\n") {
		t.Errorf("ok %v, output:\n%s", ok, out)
	}
}

func TestSlowest(t *testing.T) {
	out, _ := run(t, passed+`{"Action":"pass","Package":"p","Test":"TestD/x","Elapsed":70}
{"Action":"pass","Package":"p","Test":"TestD/y","Elapsed":30}
{"Action":"pass","Package":"p","Test":"TestD","Elapsed":100}
`, false)
	if !strings.Contains(out, "   70 s  TestD/x\n   30 s  TestD/y\n4 passed") || strings.Contains(out, "100 s") || strings.Contains(out, "TestA") {
		t.Errorf("output:\n%s", out)
	}
}

func TestNothingRanIsAFailure(t *testing.T) {
	if _, ok := run(t, "", false); ok {
		t.Error("an empty run passed")
	}
}

func TestFailureShowsItsOutput(t *testing.T) {
	out, ok := run(t, passed+`{"Action":"output","Package":"p","Test":"TestB","Output":"why it broke\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
`, false)
	if ok || !strings.Contains(out, "why it broke") {
		t.Errorf("ok %v, output:\n%s", ok, out)
	}
}

func TestPanicShowsTheUnfinishedTest(t *testing.T) {
	out, ok := run(t, passed+`{"Action":"output","Package":"q","Test":"TestC","Output":"half way\n"}
{"Action":"fail","Package":"q","Elapsed":1}
`, false)
	if ok || !strings.Contains(out, "never ended: TestC") || !strings.Contains(out, "half way") {
		t.Errorf("ok %v, output:\n%s", ok, out)
	}
}

func TestSkips(t *testing.T) {
	skipped := func(reason string) string {
		return passed + `{"Action":"output","Package":"p","Test":"TestD","Output":"    x_test.go:12: ` + reason + `\n"}
{"Action":"output","Package":"p","Test":"TestD","Output":"--- SKIP: TestD (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestD"}
`
	}
	for _, c := range []struct {
		reason     string
		strict, ok bool
	}{{"libvmi: not installed", true, true}, {"no lab", true, false}, {"no lab", false, true}} {
		out, ok := run(t, skipped(c.reason), c.strict)
		if ok != c.ok || !strings.Contains(out, "TestD: "+c.reason) || !strings.Contains(out, "1 skipped") {
			t.Errorf("%q strict %v: ok %v, output:\n%s", c.reason, c.strict, ok, out)
		}
	}
}
