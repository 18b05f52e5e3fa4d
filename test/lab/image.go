package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// fast leaves out what two thirds of a Debian kernel's boot are spent on, and
// nobody here needs: self tests of its cryptography.
const fast = "cryptomgr.notests initcall_blacklist=jent_mod_init,load_system_certificate_list"

// The sizes of the payload images, in MiB: what a copy can be given.
const (
	hostPayloadMB  = 112
	guestPayloadMB = 8
)

// image makes the boot image of a host.
type image struct {
	cfg                Config
	cache, dir         string
	base, xen, linux   string // package trees: dom0's and the emulator's, Xen's, the guest's
	xenVersion         string // the folder's name: "xen-4.20"
	loader, searchPath string // to find shared libraries with
}

// bootImage returns the folder with what the emulator boots: boot.iso.
func bootImage(ctx context.Context, cache string, cfg Config, say func(string)) (string, error) {
	cfg = cfg.withDefaults()
	m := image{cfg: cfg, cache: cache}
	var err error
	for _, s := range []struct {
		to    *string
		suite string
	}{{&m.base, baseSuite}, {&m.xen, xenSuites[cfg.Xen]}, {&m.linux, linuxSuites[cfg.Guest]}} {
		if *s.to, err = fetch(ctx, cache, s.suite, say); err != nil {
			return "", err
		}
	}
	images := filepath.Join(cache, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return "", err
	}
	name := cfg.String() + "-" + hashOf("image.go", "scripts.go", "kernel.go", "config.go", "agent.c")[:12]
	return once(ctx, images, name, func(tmp string) error {
		say("making the boot image of " + cfg.String())
		m.dir = tmp
		return m.make(ctx)
	})
}

func (m *image) make(ctx context.Context) error {
	xen, err := first(filepath.Join(m.xen, "usr/lib/xen-4.*"))
	if err != nil {
		return err
	}
	m.xenVersion = filepath.Base(xen)
	if m.loader, err = first(m.xen+"/usr/lib64/ld-linux-x86-64.so.2", m.xen+"/lib64/ld-linux-x86-64.so.2", m.xen+"/lib/x86_64-linux-gnu/ld-2*.so"); err != nil {
		return err
	}
	m.searchPath = m.xen + "/usr/lib/x86_64-linux-gnu:" + m.xen + "/lib/x86_64-linux-gnu"
	for _, step := range []func(context.Context) error{m.agent, m.guest, m.dom0, m.iso} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	// The trees are in the image now.
	return errors.Join(os.RemoveAll(m.path("guest")), os.RemoveAll(m.path("dom0")), os.RemoveAll(m.path("iso")))
}

func (m *image) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

// agent builds the program that runs commands in dom0 and in the guest.
func (m *image) agent(ctx context.Context) error {
	src, err := sources.ReadFile("assets/agent.c")
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(m.dir, 0o755), os.WriteFile(m.path("agent.c"), src, 0o644)); err != nil {
		return err
	}
	_, err = command(ctx, m.dir, "gcc", "-O2", "-static", "-o", "agent", "agent.c")
	return err
}

// busybox makes a tree with busybox under all its names, and the agent.
func (m *image) busybox(ctx context.Context, tree string, dirs ...string) error {
	for _, d := range append(dirs, "bin", "dev", "proc", "sys", "tmp", "root", "run", "modules", "payload") {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	from, err := first(m.xen+"/bin/busybox", m.xen+"/usr/bin/busybox")
	if err != nil {
		return err
	}
	to := filepath.Join(tree, "bin/busybox")
	if err := errors.Join(copyFile(from, to, 0o755), copyFile(m.path("agent"), filepath.Join(tree, "bin/agent"), 0o755)); err != nil {
		return err
	}
	list, err := command(ctx, "", to, "--list")
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(list) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// guest makes the guest's initial RAM disk, and for GRUB the image that boots it.
func (m *image) guest(ctx context.Context) error {
	tree := m.path("guest")
	if err := m.busybox(ctx, tree); err != nil {
		return err
	}
	modules, err := modulesInto(m.linux, tree, "loop", "squashfs")
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(tree, "init"), []byte(guestInit(modules)), 0o755),
		writePayloadPages(filepath.Join(tree, "payload.img"), "guest", guestPayloadMB),
		pack(ctx, tree, m.path("guest.img")),
	); err != nil {
		return err
	}
	kernel, _, err := kernelOf(m.linux)
	if err != nil {
		return err
	}
	if m.cfg.Direct {
		return unpackKernel(kernel, m.path("guest-vmlinux"))
	}
	menu := fmt.Sprintf("set timeout=0\nlinux (memdisk)/vmlinuz %s\ninitrd (memdisk)/initrd\nboot\n", m.guestCmdline())
	if err := os.WriteFile(m.path("guest-grub.cfg"), []byte(menu), 0o644); err != nil {
		return err
	}
	_, err = command(ctx, "", "grub-mkstandalone", "-d", m.base+"/usr/lib/grub/i386-xen_pvh", "-O", "i386-xen_pvh", "-o", m.path("guest-grub"),
		"--install-modules=linux normal memdisk tar", "--locales=", "--fonts=", "--themes=",
		"/boot/grub/grub.cfg="+m.path("guest-grub.cfg"), "/vmlinuz="+kernel, "/initrd="+m.path("guest.img"))
	return err
}

func (m *image) guestCmdline() string {
	line := "earlyprintk=xen,keep quiet " + fast
	if m.cfg.KPTI {
		return line + " pti=on"
	}
	return line + " mitigations=off"
}

// modulesInto puts modules and what they depend on into a tree, and returns
// their files in the order in which they load.
func modulesInto(root, tree string, names ...string) ([]string, error) {
	var all []string
	for _, name := range names {
		files, err := module(root, name, filepath.Join(tree, "modules"))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if !slices.Contains(all, f) {
				all = append(all, f)
			}
		}
	}
	return all, nil
}

// dom0Programs are what dom0 runs of Xen's tools; 4.14 has not all of the second kind.
var (
	dom0Programs  = []string{"xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0", "libxl-save-helper"}
	dom0Extras    = []string{"xen-access", "xenctx"}
	dom0MemoryMB  = 800
	hostMemoryMB  = 1760
	xenCommonLine = "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=all noreboot altp2m=1 apicv=0 cpuidle=0 clocksource=pit " +
		"no-real-mode bootscrub=0 spec-ctrl=no pv-l1tf=off"
)

func (m *image) dom0(ctx context.Context) error {
	tree := m.path("dom0")
	bin := filepath.Join("usr/lib", m.xenVersion, "bin")
	if err := m.busybox(ctx, tree, "lib64", bin, "etc/xen", "var/lock", "var/log/xen/console", "var/lib/xen", "var/lib/xenstored"); err != nil {
		return err
	}
	modules, err := modulesInto(m.base, tree, "loop", "squashfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs")
	if err != nil {
		return err
	}
	if err := m.dom0Tools(tree, bin); err != nil {
		return err
	}
	if err := m.libraries(ctx, tree, bin); err != nil {
		return err
	}
	guestFiles := map[string]string{"guest-vmlinux": "root/vmlinux", "guest.img": "root/guest.img"}
	if !m.cfg.Direct {
		guestFiles = map[string]string{"guest-grub": "root/grub"}
	}
	for from, to := range guestFiles {
		if err := copyFile(m.path(from), filepath.Join(tree, to), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(
		os.Symlink("/run", filepath.Join(tree, "var/run")),
		os.WriteFile(filepath.Join(tree, "etc/xen/xl.conf"), nil, 0o644),
		os.WriteFile(filepath.Join(tree, "root/guest.cfg"), []byte(guestConfig(m.cfg, m.guestCmdline())), 0o644),
		os.WriteFile(filepath.Join(tree, "init"), []byte(dom0Init(m.cfg, m.xenVersion, modules)), 0o755),
		os.WriteFile(filepath.Join(tree, "bin/guest"), []byte(guestCommand), 0o755),
		writePayloadPages(filepath.Join(tree, "payload.img"), "dom0", hostPayloadMB),
		pack(ctx, tree, m.path("dom0.img")),
	)
}

func (m *image) dom0Tools(tree, bin string) error {
	for _, p := range append(slices.Clone(dom0Programs), dom0Extras...) {
		err := copyFile(filepath.Join(m.xen, bin, p), filepath.Join(tree, bin, p), 0o755)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(dom0Extras, p) {
			continue
		}
		if err != nil {
			return err
		}
	}
	clients, err := filepath.Glob(filepath.Join(m.xen, "usr/bin/xenstore*"))
	if err != nil {
		return err
	}
	for _, p := range clients {
		if err := copyFile(p, filepath.Join(tree, "bin", filepath.Base(p)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// libraries copies what dom0's programs are linked with, as their own suite's
// loader finds it.
func (m *image) libraries(ctx context.Context, tree, bin string) error {
	lib := filepath.Join(tree, "lib64")
	if err := copyFile(m.loader, filepath.Join(lib, "ld-linux-x86-64.so.2"), 0o755); err != nil {
		return err
	}
	programs, err := filepath.Glob(filepath.Join(tree, bin, "*"))
	if err != nil {
		return err
	}
	clients, err := filepath.Glob(filepath.Join(tree, "bin/xenstore*"))
	if err != nil {
		return err
	}
	need := map[string]bool{}
	for _, p := range append(programs, clients...) {
		if !isELF(p) {
			continue // a script
		}
		out, err := command(ctx, "", m.loader, "--library-path", m.searchPath, "--list", p)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if _, path, ok := strings.Cut(line, "=> /"); ok {
				path, _, _ = strings.Cut(path, " ")
				need["/"+path] = true
			}
		}
	}
	// pthread_cancel loads it by name.
	gcc, err := first(m.xen+"/usr/lib/x86_64-linux-gnu/libgcc_s.so.1", m.xen+"/lib/x86_64-linux-gnu/libgcc_s.so.1")
	if err != nil {
		return err
	}
	need[gcc] = true
	for path := range need {
		if err := copyFile(path, filepath.Join(lib, filepath.Base(path)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// iso makes the disk that the emulator boots.
func (m *image) iso(ctx context.Context) error {
	boot := m.path("iso/boot")
	if err := os.MkdirAll(boot+"/grub", 0o755); err != nil {
		return err
	}
	xen, err := first(m.xen + "/boot/xen-4*.gz")
	if err != nil {
		return err
	}
	kernel, _, err := kernelOf(m.base)
	if err != nil {
		return err
	}
	menu := fmt.Sprintf(`set timeout=0
set gfxpayload=text
serial --unit=0 --speed=115200
terminal_output serial
menuentry xen {
 multiboot2 /boot/xen %s dom0_mem=%dM,max:%dM%s
 module2 /boot/vmlinux console=hvc0 nokaslr quiet mitigations=off rdinit=/init %s
 module2 /boot/dom0.img
}
`, xenCommonLine, dom0MemoryMB, dom0MemoryMB, m.dom0CPUs(), fast)
	if err := errors.Join(
		gunzip(xen, boot+"/xen"),
		unpackKernel(kernel, boot+"/vmlinux"),
		os.Rename(m.path("dom0.img"), boot+"/dom0.img"),
		os.WriteFile(boot+"/grub/grub.cfg", []byte(menu), 0o644),
	); err != nil {
		return err
	}
	_, err = command(ctx, m.dir, "grub-mkrescue", "-o", m.path("boot.iso"), m.path("iso"))
	return err
}

// dom0CPUs keeps dom0 to the first CPU where it is pinned there.
func (m *image) dom0CPUs() string {
	if m.cfg.Pinned {
		return " dom0_max_vcpus=1 dom0_vcpus_pin"
	}
	return ""
}

// pack makes an initial RAM disk. It is not compressed: see unpackKernel.
func pack(ctx context.Context, tree, to string) error {
	list := exec.CommandContext(ctx, "find", ".")
	list.Dir = tree
	names, err := list.Output()
	if err != nil {
		return fmt.Errorf("list %s: %w", tree, err)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	cpio := exec.CommandContext(ctx, "cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0")
	cpio.Dir, cpio.Stdin, cpio.Stdout = tree, bytes.NewReader(names), out
	return errors.Join(cpio.Run(), out.Close())
}
