package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bootLimit is how long a boot may take: several times what it takes on two
// slow cores.
const bootLimit = 8 * time.Minute

// machine is a booted host that stands still as a fork server.
type machine struct {
	cfg    Config
	dir    string // its own: serial.out, bochs.log, fork
	cmd    *exec.Cmd
	listen *net.TCPListener // where the com2 of each copy connects to
	dead   chan struct{}    // closed when the emulator ended
	took   time.Duration

	orders sync.Mutex // one copy is made at a time: its connection is the next one
	copies int
}

// spawner starts processes that die with this one: PDEATHSIG is sent when the
// thread ends that started them, so one thread that never ends starts them all.
var spawner = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

func startWithParent(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error)
	spawner() <- func() { done <- cmd.Start() }
	return <-done
}

// boot boots a host. dir is its own folder.
func boot(ctx context.Context, cfg Config, dir string, say func(string)) (_ *machine, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	emulator, err := bochs(ctx, cache, say)
	if err != nil {
		return nil, err
	}
	img, err := bootImage(ctx, cache, cfg, say)
	if err != nil {
		return nil, err
	}
	m := &machine{cfg: cfg, dir: dir, dead: make(chan struct{})}
	if m.listen, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	start := time.Now()
	if err := m.start(emulator, filepath.Join(cache, baseSuite), filepath.Join(img, "boot.iso")); err != nil {
		return nil, err
	}
	if err := m.waitReady(ctx, say); err != nil {
		return nil, fmt.Errorf("%s did not boot: %w\nwhere it got to, from %s:\n%s", cfg, err, m.serial(), m.lastSerial())
	}
	m.took = time.Since(start)
	say(fmt.Sprintf("%s is up after %.0f s", cfg, m.took.Seconds()))
	// From now on it stands still, and forks when it is told to.
	return m, os.WriteFile(m.fifo()+".go", nil, 0o644)
}

func (m *machine) serial() string { return filepath.Join(m.dir, "serial.out") }
func (m *machine) fifo() string   { return filepath.Join(m.dir, "fork") }

func (m *machine) start(emulator, base, iso string) error {
	if err := errors.Join(os.MkdirAll(m.dir, 0o755), os.WriteFile(m.serial(), nil, 0o644), syscall.Mkfifo(m.fifo(), 0o600)); err != nil {
		return err
	}
	rc := fmt.Sprintf(`config_interface: textconfig
display_library: nogui
cpu: model=corei7_haswell_4770, count=%d, ips=100000000, reset_on_triple_fault=0
memory: guest=%d, host=%d
romimage: file=%s/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=%s/usr/share/vgabios/vgabios.bin
vga: extension=none
pci: enabled=1, chipset=i440fx
ata0-master: type=cdrom, path=%s, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=%s
com2: enabled=1, mode=socket-client, dev=localhost:%d
clock: sync=none, time0=1700000000
log: %s/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
`, m.cfg.withDefaults().CPUs, hostMemoryMB, hostMemoryMB, base, base, iso, m.serial(), m.listen.Addr().(*net.TCPAddr).Port, m.dir)
	if err := os.WriteFile(filepath.Join(m.dir, "bochsrc"), []byte(rc), 0o644); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(m.dir, "bochs.out"))
	if err != nil {
		return err
	}
	defer out.Close()
	m.cmd = exec.Command(emulator, "-q", "-f", filepath.Join(m.dir, "bochsrc"))
	m.cmd.Dir, m.cmd.Stdout, m.cmd.Stderr = m.dir, out, out
	// The host's memory in large pages, where the machine has them on request: a copy's
	// fork has 400 entries to copy then, not 200,000.
	const large = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
	m.cmd.Env = append(os.Environ(), "LAB_COM1="+m.serial(), "LAB_FORK="+m.fifo(), "BXSHARE="+base+"/usr/share/bochs", large)
	if err := startWithParent(m.cmd); err != nil {
		return fmt.Errorf("start the emulator: %w", err)
	}
	go func() { // ends with the emulator
		_ = m.cmd.Wait() // how it ended is in its log
		close(m.dead)
	}()
	return nil
}

// stages are the lines of dom0's init, and what they mean.
var stages = []struct{ line, say string }{
	{"== dom0 up", "dom0 is up"}, {"== guest created", "the guest boots"}, {"== guest up", "the guest is up"},
}

// waitReady waits for the agent's word on com2, telling of the stages meanwhile.
func (m *machine) waitReady(ctx context.Context, say func(string)) error {
	ready := make(chan error, 1)
	go func() { // ends with the listener or the connection, at the latest in stop
		conn, err := m.listen.Accept()
		if err != nil {
			ready <- err
			return
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && line != "ready\n" {
			err = fmt.Errorf("com2 says %q", line)
		}
		ready <- err
		// Kept open: its end is the end of the machine.
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	told := 0
	for {
		select {
		case err := <-ready:
			return err
		case <-m.dead:
			return fmt.Errorf("the emulator ended: see %s", filepath.Join(m.dir, "bochs.log"))
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			b, err := os.ReadFile(m.serial())
			if err != nil {
				return err
			}
			for told < len(stages) && strings.Contains(string(b), stages[told].line) {
				say(stages[told].say)
				told++
			}
			if _, why, no := strings.Cut(string(b), "== no guest"); no && strings.Contains(why, "== guest created") {
				return errors.New("xl could not create the guest")
			}
			if strings.Contains(string(b), "== the guest has not all") {
				return fmt.Errorf("not all of the guest's %d vCPUs came up", m.cfg.withDefaults().VCPUs)
			}
		}
	}
}

func (m *machine) lastSerial() string {
	b, err := os.ReadFile(m.serial())
	if err != nil {
		return err.Error()
	}
	return lastLines(strings.ReplaceAll(string(b), "\r", ""), 20)
}

// fork makes a copy: its com1 goes to the file serial, its payloads are files,
// by tag. The connection is its com2; when that ends, so does the copy.
func (m *machine) fork(serial string, payloads map[string]string) (net.Conn, error) {
	m.orders.Lock()
	defer m.orders.Unlock()
	select {
	case <-m.dead:
		return nil, fmt.Errorf("the emulator of %s ended: see %s", m.cfg, m.dir)
	default:
	}
	order := fmt.Sprintf("%s %d", serial, m.listen.Addr().(*net.TCPAddr).Port)
	for tag, file := range payloads {
		order += " " + tag + "=" + file
	}
	fifo, err := os.OpenFile(m.fifo(), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(fifo, order)
	if err := errors.Join(err, fifo.Close()); err != nil {
		return nil, err
	}
	if err := m.listen.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	conn, err := m.listen.Accept()
	if err != nil {
		return nil, fmt.Errorf("the copy did not come up: %w", err)
	}
	m.copies++
	return conn, nil
}

// stop ends the machine and all its copies.
func (m *machine) stop() {
	if m.cmd != nil && m.cmd.Process != nil {
		_ = m.cmd.Process.Kill() // fails when it has ended
		<-m.dead
	}
	m.listen.Close()
}
