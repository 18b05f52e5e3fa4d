package xen

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestDemo: what `make demo` shows comes out as told; it checks itself each
// thing that it says.
func TestDemo(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "run", module+"test/demo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "All of it came out as told") {
		t.Errorf("%v\n%s", err, out)
	}
}
