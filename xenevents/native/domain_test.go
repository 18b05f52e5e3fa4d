package native

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

func TestDecodeInfo(t *testing.T) {
	b := make([]byte, 104)
	le.PutUint16(b, 7)
	le.PutUint32(b[4:], 1<<1|1<<3|1<<8) // hvm, paused, hap
	le.PutUint64(b[8:], 65536)
	le.PutUint64(b[16:], 65792)
	le.PutUint64(b[24:], 1)
	le.PutUint32(b[64:], 2)
	le.PutUint32(b[68:], 3)
	for i := range 16 {
		b[76+i] = byte(0xa0 + i)
	}
	want := xenevents.DomainInfo{ID: 7, HVM: true, HAP: true, Paused: true, VCPUs: 2, MaxVCPU: 3, Pages: 65536, MaxPages: 65792,
		UUID: [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}}
	if got := decodeInfo(b); got != want {
		t.Errorf("%+v\nwant\n%+v", got, want)
	}
	le.PutUint32(b[4:], 1<<0|1<<2)
	if got := decodeInfo(b); !got.Dying || !got.Shutdown || got.HVM || got.HAP || got.Paused {
		t.Errorf("%+v", got)
	}
}

func TestDecodeCPU(t *testing.T) {
	b := make([]byte, abi.CPURecordSize)
	for at := 0; at+8 <= len(b); at += 8 {
		le.PutUint64(b[at:], uint64(at))
	}
	// cs is u32 (save.h), ss is the next one but none of these two is aligned to 8.
	le.PutUint32(b[736:], 0x10)
	le.PutUint32(b[756:], 0x18)
	got := decodeCPU(b)
	want := xenevents.Registers{RAX: 512, RBX: 520, RCX: 528, RDX: 536, RBP: 544, RSI: 552, RDI: 560, RSP: 568, R8: 576, R9: 584, R10: 592, R11: 600,
		R12: 608, R13: 616, R14: 624, R15: 632, RIP: 640, RFLAGS: 648, CR0: 656, CR2: 664, CR3: 672, CR4: 680, DR6: 720, DR7: 728,
		FSBase: 832, GSBase: 840, GDTRBase: 880, SysenterCS: 920, SysenterESP: 928, SysenterEIP: 936, ShadowGS: 944, LSTAR: 960, STAR: 968, EFER: 992, CS: 0x10, SS: 0x18}
	if got != want {
		t.Errorf("%+v\nwant\n%+v", got, want)
	}
}

func TestTryVersions(t *testing.T) {
	for _, right := range []uint32{0x10, 0x12, 0x18, 0x23} {
		v, err := tryVersions(func(v uint32) error {
			if v != right {
				return sys.EACCES
			}
			return nil
		})
		if v != right || err != nil {
			t.Errorf("%#x: found %#x, %v", right, v, err)
		}
	}
	if _, err := tryVersions(func(uint32) error { return sys.EACCES }); !errors.Is(err, sys.EACCES) {
		t.Errorf("none fits: %v", err)
	}
	// Any other error means that the version is right and something else is wrong.
	if _, err := tryVersions(func(uint32) error { return sys.EPERM }); !errors.Is(err, sys.EPERM) {
		t.Errorf("not allowed: %v", err)
	}
	h := &Host{ver: abi.Versions{Major: 4, Minor: 99}}
	if err := h.unknown("domctl", sys.EACCES); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "Xen 4.99") {
		t.Errorf("%v", err)
	}
	if err := h.unknown("domctl", sys.EPERM); errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "as root") {
		t.Errorf("%v", err)
	}
}

func TestHasOption(t *testing.T) {
	for line, want := range map[string]bool{
		"altp2m=1": true, "altp2m": true, "altp2m=on": true, "altp2m=yes": true, "altp2m=true": true, "altp2m=enable": true,
		"": false, "altp2m=0": false, "altp2m=off": false, "altp2m=no": false, "altp2m=false": false, "no-altp2m": false,
		"altp2m=1 no-altp2m": false, "no-altp2m altp2m": true, "altp2m=0 dom0_mem=1G altp2m=1": true,
		"xaltp2m=1": false, "altp2mx=1": false, "altp2m=": false, "altp2m=external": false,
	} {
		if got := hasOption(line, "altp2m"); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestPoll(t *testing.T) {
	for _, c := range []struct {
		poll int64
		cpus uint32
		want uint64
	}{{0, 1, 0}, {0, 2, 100_000}, {-1, 2, 0}, {5, 1, 5}, {1 << 62, 2, maxPoll}} {
		if got := (&Options{Poll: c.poll}).poll(c.cpus); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

func TestRPWIsNotGuessed(t *testing.T) {
	for minor, want := range map[int]xenevents.Answer{14: xenevents.No, 19: xenevents.No, 20: xenevents.CannotTell, 22: xenevents.CannotTell} {
		f := (&Domain{host: &Host{ver: abi.Versions{Major: 4, Minor: minor}}}).rpw()
		if f.Answer != want || f.Blocks() || (want == xenevents.No) != (f.Fix != "") {
			t.Errorf("4.%d: %+v", minor, f)
		}
	}
}

// serveXenstore answers one request of each connection.
func serveXenstore(t *testing.T, answer func(op, id uint32, path string) []byte) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			head := make([]byte, 16)
			if _, err := io.ReadFull(c, head); err == nil {
				path := make([]byte, le.Uint32(head[12:]))
				if _, err := io.ReadFull(c, path); err == nil {
					c.Write(answer(le.Uint32(head), le.Uint32(head[4:]), string(path)))
				}
			}
			c.Close()
		}
	}()
	old := xenstorePaths
	xenstorePaths = []string{filepath.Join(t.TempDir(), "none"), socket}
	t.Cleanup(func() {
		xenstorePaths = old
		l.Close()
		<-done
	})
}

func reply(kind, id uint32, body string) []byte {
	var b []byte
	for _, v := range []uint32{kind, id, 0, uint32(len(body))} {
		b = le.AppendUint32(b, v)
	}
	return append(b, body...)
}

func TestPassthrough(t *testing.T) {
	var asked []string
	devices := map[string]string{"/local/domain/0/backend/pci/1/0/num_devs\x00": "0", "/local/domain/0/backend/pci/2/0/num_devs\x00": "2"}
	serveXenstore(t, func(op, id uint32, path string) []byte {
		asked = append(asked, path)
		if path == "/local/domain/0/backend/pci/4/0/num_devs\x00" {
			return reply(16, id, "EACCES\x00")
		}
		if v, ok := devices[path]; ok {
			return reply(op, id, v)
		}
		return reply(16, id, "ENOENT\x00")
	})
	for id, want := range map[xenevents.DomainID]xenevents.Answer{1: xenevents.No, 2: xenevents.Yes, 3: xenevents.No, 4: xenevents.CannotTell} {
		f := (&Domain{id: id}).passthrough(context.Background())
		if f.Answer != want || f.Blocks() != (want == xenevents.Yes) || (f.Fix != "") != (want == xenevents.Yes) {
			t.Errorf("domain %d: %+v", id, f)
		}
		if want == xenevents.CannotTell && !strings.Contains(f.Detail, "EACCES") {
			t.Errorf("domain %d: %+v", id, f)
		}
	}
	if len(asked) != 4 {
		t.Errorf("asked for %q", asked)
	}
}

func TestXenstoreAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		raw  []byte
		want string // of the error; "" for none
	}{
		"value":       {reply(2, 9, "guest"), ""},
		"nothing":     {nil, "EOF"},
		"cut off":     {reply(2, 9, "guest")[:18], "unexpected EOF"},
		"another's":   {reply(2, 8, "guest"), "to request 8, not 9"},
		"too long":    {append(reply(2, 9, "")[:12], 0xff, 0xff, 0xff, 0xff), "4294967295 bytes"},
		"other kind":  {reply(3, 9, "x"), "kind 3"},
		"other error": {reply(16, 9, "EIO\x00"), `"EIO"`},
	} {
		got, err := readReply(bytes.NewReader(c.raw), 2, 9)
		if c.want == "" && (err != nil || string(got) != "guest") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := readReply(bytes.NewReader(reply(16, 9, "ENOENT\x00")), 2, 9); !errors.Is(err, errNoEntry) {
		t.Errorf("%v", err)
	}
}

func FuzzReadReply(f *testing.F) {
	f.Add(reply(2, 9, "guest"))
	f.Add(reply(16, 9, "ENOENT\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readReply(bytes.NewReader(raw), 2, 9)
		if err == nil && !bytes.Equal(raw[:16+len(got)], slices.Concat(reply(2, 9, "")[:8], raw[8:16], got)) || len(got) > xsMaxPayload {
			t.Errorf("%x is %q", raw, got)
		}
	})
}
