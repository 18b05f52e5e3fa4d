package xen

import (
	"context"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// daemonWith starts hprobed with flags, and ends it when it has said that it is ready.
func daemonWith(flags string) string {
	return `hprobed --profiles /payload ` + flags + ` > /tmp/hprobed.log 2>&1 & pid=$!
n=0; until grep -q ready /tmp/hprobed.log || [ ! -d /proc/$pid ] || [ $n -gt 200 ]; do n=$((n+1)); sleep 0.05; done
kill $pid 2> /dev/null; wait $pid; status=$?; cat /tmp/hprobed.log; exit $status`
}

// static builds a program without LibVMI, whatever the tests' driver.
func static(t *testing.T, pkg string) string {
	t.Helper()
	path, err := lab.BuildGo(context.Background(), module+pkg)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWithoutLibVMI: a binary that was built without it says so, and goes on without.
func TestWithoutLibVMI(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, plain, lab.File{Name: "hprobed", Source: static(t, "cmd/hprobed")}, lab.File{Name: "hprobe", Source: static(t, "cmd/hprobe")})
	says(t, h, 0, daemonWith(""), "driver=native", "a binary that was built with it")
	says(t, h, 0, daemonWith("--driver native"), "driver=native", "asked for")
	says(t, h, 1, daemonWith("--driver libvmi"), "LibVMI is not supported here", "make build", "--driver native")
	says(t, h, 2, daemonWith("--driver qemu"), `no driver is called "qemu"`, "auto, libvmi or native")
	says(t, h, 2, "hprobe domain ls --driver qemu", "auto, libvmi or native")
	says(t, h, 0, "hprobe domain ls", "guest")
	says(t, h, 4, "hprobe domain ls --dump /payload/hprobe", "LibVMI is not supported here")
}

// TestLibVMIComesAndGoes: hprobed takes LibVMI where it is installed, and does without it
// where it is not, or is broken.
func TestLibVMIComesAndGoes(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, plain, lab.File{Name: "hprobed", Source: lab.GoBinaryLibVMI(t, module+"cmd/hprobed")}, lab.File{Name: "hprobe", Source: lab.GoBinaryLibVMI(t, module+"cmd/hprobe")})
	says(t, h, 0, daemonWith(""), "driver=libvmi", "LibVMI is installed")
	says(t, h, 0, daemonWith("--driver native"), "driver=native", "asked for")
	says(t, h, 0, "hprobe domain ls --driver libvmi", "guest")
	says(t, h, 0, "hprobe doctor guest", "LibVMI", "Nothing is in the way.")
	says(t, h, 0, "head -c 1048576 /dev/zero > /tmp/dump; hprobe domain ls --dump /tmp/dump", "dump", "1 MiB")
	h.MustRun(t, "mount --bind /dev/null /payload/libvmi/libvmi.so.0")
	says(t, h, 0, daemonWith(""), "driver=native", "LibVMI's can't be had", "libvmi.so.0")
	says(t, h, 1, daemonWith("--driver libvmi"), "LibVMI is not supported here", "--driver native")
	alive(t, h)
}
