package lab_test

import (
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// libraries are the shared libraries in a program's memory map, by path.
func libraries(maps string) (all []string) {
	for line := range strings.Lines(maps) {
		if at := strings.Index(line, "/"); at >= 0 && strings.Contains(line, ".so") {
			if lib := strings.TrimSpace(line[at:]); !slices.Contains(all, lib) {
				all = append(all, lib)
			}
		}
	}
	return all
}

// checkLibraries: Xen's libraries are dom0's, and nothing else is.
func checkLibraries(t *testing.T, maps string) {
	t.Helper()
	all := libraries(maps)
	t.Log(all)
	names := map[string]bool{}
	for _, lib := range all {
		name, _, _ := strings.Cut(path.Base(lib), ".so")
		names[name] = true
		if want := map[bool]string{true: "/lib64", false: "/payload/libvmi"}[strings.HasPrefix(name, "libxen")]; path.Dir(lib) != want {
			t.Errorf("%s is not from %s", lib, want)
		}
	}
	for _, name := range []string{"libvmi", "libc", "libxenctrl", "libxenstore", "libxenevtchn"} {
		if !names[name] {
			t.Errorf("no %s among %v", name, all)
		}
	}
}

// TestLibVMI: a program with LibVMI runs in each dom0, by LibVMI and a C library of
// this machine and the libraries of its Xen, and can look into the guest.
func TestLibVMI(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("testdata/vmi.c")
	if err != nil {
		t.Fatal(err)
	}
	vmi := lab.LibVMIProgram(t, "vmi", map[string][]byte{"vmi.c": source})
	for _, cfg := range []lab.Config{{Xen: "4.20", Guest: "6.12"}, {Xen: "4.17", Guest: "6.1"}, {Xen: "4.14", Guest: "5.10"}} {
		t.Run(cfg.String(), func(t *testing.T) {
			h := lab.Copy(t, cfg, vmi)
			out := h.MustRun(t, "vmi 1")
			_, said, _ := strings.Cut(out, "ok: vcpus 1, cr3 ")
			words := strings.Fields(said)
			if len(words) != 4 || !strings.Contains("13579bdf", words[3][len(words[3])-1:]) { // it is present
				t.Errorf("it says %s", out)
			}
			t.Log(said)
			checkLibraries(t, out)
		})
	}
}

// TestGoWithLibVMI: so does a Go program, which LibVMI's driver is built into, and it
// is told to use it.
func TestGoWithLibVMI(t *testing.T) {
	t.Setenv("HPROBE_TEST_DRIVER", "libvmi")
	opens := lab.File{Name: "opens", Source: lab.GoBinary(t, "github.com/hprobe/hprobe/test/lab/testdata/opens")}
	h := lab.Copy(t, lab.Config{}, opens)
	out := h.MustRun(t, "opens libvmi.so.0 libxenevtchn.so.1 libxenctrl.so.4.20 libxenstore.so")
	if !strings.HasPrefix(out, "driver \"libvmi\"\n") {
		t.Errorf("it says %s", out)
	}
	checkLibraries(t, out)
	if out := h.Guest.MustRun(t, "echo driver: $HPROBE_DRIVER"); out != "driver:\n" {
		t.Errorf("the guest's programs are told: %s", out)
	}
}

// TestDriver: what the tests can be asked for.
func TestDriver(t *testing.T) {
	for value, want := range map[string]string{"": "native", "native": "native", "libvmi": "libvmi"} {
		t.Setenv("HPROBE_TEST_DRIVER", value)
		if d, err := lab.Driver(); d != want || err != nil {
			t.Errorf("%q is %q, %v", value, d, err)
		}
	}
	t.Setenv("HPROBE_TEST_DRIVER", "LibVMI")
	if _, err := lab.Driver(); err == nil || !strings.Contains(err.Error(), "the tests know native and libvmi") {
		t.Errorf("another driver: %v", err)
	}
}
