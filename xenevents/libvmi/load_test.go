//go:build libvmi

package libvmi

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

// TestLoadOther: a libvmi.so.0 that is another one than hprobe was built for is an error
// that says so, in a process of its own: the loader looks once.
func TestLoadOther(t *testing.T) {
	const asked = "HPROBE_TEST_LOAD"
	if os.Getenv(asked) != "" {
		err := load()
		var no *xenevents.UnsupportedError
		if !errors.As(err, &no) || no.Need == "" {
			t.Fatalf("%v", err)
		}
		os.Stdout.WriteString(err.Error())
		return
	}
	if err := load(); err != nil {
		t.Skip("libvmi: ", err)
	}
	for name, c := range map[string]struct{ source, want string }{
		"too old":      {"int vmi_init;", "too old: it has no vmi_destroy"},
		"no library":   {"", "libvmi.so.0"},
		"other events": {"", "version 8 of its events, and hprobe was built for 9"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			lib := filepath.Join(dir, "libvmi.so.0")
			source := c.source
			if name == "other events" {
				source = otherEvents(t)
			}
			if name == "no library" {
				for _, lib := range []string{lib, filepath.Join(dir, "libvmi.so")} {
					if err := os.WriteFile(lib, []byte("no library"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				cc := exec.Command("gcc", "-shared", "-fPIC", "-xc", "-o", lib, "-")
				cc.Stdin = strings.NewReader(source)
				if out, err := cc.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			again := exec.Command(os.Args[0], "-test.run", "^TestLoadOther$")
			again.Env = append(os.Environ(), asked+"=1", "LD_LIBRARY_PATH="+dir)
			out, err := again.CombinedOutput()
			if err != nil || !strings.Contains(string(out), c.want) {
				t.Errorf("%v, and not %q: %s", err, c.want, out)
			}
		})
	}
}

// otherEvents is a LibVMI that has all functions, and another version of its events.
func otherEvents(t *testing.T) string {
	header, err := os.ReadFile("glue.h")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	_, list, _ := strings.Cut(string(header), "#define HP_FUNCTIONS(F)")
	list, _, _ = strings.Cut(list, "\n\n")
	for _, f := range strings.Split(list, "F(")[1:] {
		name, _, _ := strings.Cut(f, ")")
		source.WriteString("int " + name + "(void) { return 8; }\n")
	}
	return source.String()
}
