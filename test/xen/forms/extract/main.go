// Command extract makes forms.txt anew: the most frequent instruction forms of
// Debian's Linux 6.12 and of its C library, as the lab has them.
//
// Debian replaces both from time to time. Of other versions than those that the
// table names, it leaves it alone: empty it to have it made of those.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/hprobe/hprobe/profiles/build"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/test/xen/forms"
)

// How many are taken: of each source's most frequent ones, and of those that
// functions begin with, if so many do.
const (
	mostFrequent = 340
	entryMin     = 4
)

const table = "forms.txt"

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "extract:", err)
		os.Exit(1)
	}
}

// seen is what is known of a form.
type seen struct {
	form           *forms.Form
	differ         bool // its register operands are different ones
	kernel, libc   int
	kernelE, libcE int // of these at a function's entry
}

type counter map[string]*seen

func run(ctx context.Context) error {
	kernel, release, err := lab.GuestKernel(ctx, "6.12")
	if err != nil {
		return err
	}
	root := filepath.Dir(filepath.Dir(kernel))
	libcPath := filepath.Join(root, "usr/lib/x86_64-linux-gnu/libc.so.6")
	libc, err := os.ReadFile(libcPath)
	if err != nil {
		return err
	}
	_, version, ok := bytes.Cut(libc, []byte("stable release version "))
	version, _, ok2 := bytes.Cut(version, []byte(".\n"))
	if _, rest, cut := bytes.Cut(libc, []byte("GNU C Library (")); cut && ok && ok2 {
		version, _, _ = bytes.Cut(rest, []byte(")"))
	}
	head := fmt.Sprintf("# Of Linux %s and %s: `go generate ./test/xen/forms`.\n", release, version)
	if old, err := os.ReadFile(table); err == nil && len(old) > 0 && !bytes.HasPrefix(old, []byte(head)) {
		line, _, _ := strings.Cut(string(old), "\n")
		fmt.Printf("%s is of other versions than the lab has now, and stays: %s\n", table, line)
		return nil
	}
	all := counter{}
	if err := all.kernel(ctx, kernel); err != nil {
		return fmt.Errorf("%s: %w", kernel, err)
	}
	if err := all.libc(libc); err != nil {
		return fmt.Errorf("%s: %w", libcPath, err)
	}
	return os.WriteFile(table, all.table(head), 0o644)
}

func (c counter) kernel(ctx context.Context, path string) error {
	packed, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	at := bytes.Index(packed, []byte("\x28\xb5\x2f\xfd"))
	if at < 0 {
		return fmt.Errorf("it is not packed with zstd")
	}
	z, err := zstd.NewReader(bytes.NewReader(packed[at:]), zstd.WithDecoderMaxWindow(1<<27))
	if err != nil {
		return err
	}
	defer z.Close()
	image, err := io.ReadAll(z)
	if len(image) < 10<<20 { // what follows the stream is no part of it
		return fmt.Errorf("%d bytes: %w", len(image), err)
	}
	profile, err := build.FromFile(ctx, path)
	if err != nil {
		return err
	}
	text, addr, err := textOf(image)
	if err != nil {
		return err
	}
	var starts []uint64
	for i := range profile.NumSymbols() {
		if s := profile.SymbolAt(i); s.Addr >= addr && s.Addr < addr+uint64(len(text)) && function(s) {
			starts = append(starts, s.Addr-addr)
		}
	}
	c.sweep(text, starts, func(s *seen) (*int, *int) { return &s.kernel, &s.kernelE })
	return nil
}

// function leaves out the compiler's cold parts, which are no entries.
func function(s isf.Symbol) bool { return !strings.Contains(s.Name, ".cold") }

// libc has no symbols but those that it exports; all that may be called by
// pointer begins with endbr64.
func (c counter) libc(image []byte) error {
	text, addr, err := textOf(image)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return err
	}
	var starts []uint64
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Value >= addr && s.Value < addr+uint64(len(text)) {
			starts = append(starts, s.Value-addr)
		}
	}
	for at := 0; ; at++ {
		n := bytes.Index(text[at:], []byte{0xf3, 0x0f, 0x1e, 0xfa})
		if n < 0 {
			break
		}
		at += n
		starts = append(starts, uint64(at))
	}
	c.sweep(text, starts, func(s *seen) (*int, *int) { return &s.libc, &s.libcE })
	return nil
}

func textOf(image []byte) (text []byte, addr uint64, err error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, 0, err
	}
	s := f.Section(".text")
	if s == nil {
		return nil, 0, fmt.Errorf("no .text")
	}
	text, err = s.Data()
	return text, s.Addr, err
}

// sweep decodes functions from their starts; what is not understood ends one.
func (c counter) sweep(text []byte, starts []uint64, count func(*seen) (all, entry *int)) {
	slices.Sort(starts)
	starts = append(slices.Compact(starts), uint64(len(text)))
	for i := range len(starts) - 1 {
		code := text[starts[i]:starts[i+1]]
		entry := true
		for len(code) > 0 {
			f, err := forms.Decode(code)
			if err != nil {
				break
			}
			code = code[len(f.Code):]
			if !f.Runs() {
				entry = false
				continue
			}
			key := f.Key()
			s := c[key]
			if s == nil {
				s = &seen{form: f}
				c[key] = s
			}
			if !s.differ && f.RegsDiffer() {
				s.form, s.differ = f, true
			}
			n, e := count(s)
			*n++
			if entry {
				*e++
			}
			entry = entry && f.Text == "endbr64"
		}
	}
}

func (c counter) table(head string) []byte {
	taken := map[string]*seen{}
	for _, n := range []func(*seen) int{func(s *seen) int { return s.kernel }, func(s *seen) int { return s.libc }} {
		var keys []string
		for k := range c {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(n(c[b]), n(c[a])), cmp.Compare(a, b)) })
		for _, k := range keys[:min(mostFrequent, len(keys))] {
			taken[k] = c[k]
		}
	}
	var kernel, libc, inKernel, inLibc int
	for k, s := range c {
		kernel, libc = kernel+s.kernel, libc+s.libc
		if s.kernelE >= entryMin || s.libcE >= entryMin {
			taken[k] = s
		}
	}
	var keys []string
	for k, s := range taken {
		keys = append(keys, k)
		inKernel, inLibc = inKernel+s.kernel, inLibc+s.libc
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(c[b].kernel, c[a].kernel), cmp.Compare(c[b].libc, c[a].libc), cmp.Compare(a, b))
	})
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	fmt.Fprint(w, head)
	fmt.Fprintf(w, "# %d of %d forms; they are %.2f %% of %d instructions of the kernel, %.2f %% of %d of the library.\n",
		len(keys), len(c), 100*float64(inKernel)/float64(kernel), kernel, 100*float64(inLibc)/float64(libc), libc)
	fmt.Fprintln(w, "# code, how often in the kernel (of these at an entry) and in the library, text")
	for _, k := range keys {
		s := c[k]
		fmt.Fprintf(w, "%-24x %7d %6d %6d %5d  %s\n", s.form.Code, s.kernel, s.kernelE, s.libc, s.libcE, s.form.Text)
	}
	w.Flush()
	return out.Bytes()
}
