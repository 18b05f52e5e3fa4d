// Command texthash hashes the code of a guest's kernel as dom0 sees it: the
// counterpart of the guest's own program in test/guests, with the same result
// where both see the same bytes.
package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Println("usage: texthash DOMAIN PROFILE")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Println("texthash:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, domain, file string) (err error) {
	profile, err := isf.ReadFile(file)
	if err != nil {
		return err
	}
	host, err := monitor.Driver(ctx, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	info, err := xenevents.FindDomain(ctx, host, domain)
	if err != nil {
		return err
	}
	dom, err := host.Open(ctx, info.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	kernel, err := guestos.FindKernel(dom, int(info.MaxVCPU)+1, profile)
	if err != nil {
		return err
	}
	from, err := kernel.Address("_stext")
	if err != nil {
		return err
	}
	to, err := kernel.Address("_etext")
	if err != nil {
		return err
	}
	mem := guestmem.NewReader(dom)
	hash := fnv.New64a()
	page := make([]byte, xenevents.PageSize)
	for at := from; at < to; at += xenevents.PageSize {
		b := page[:min(uint64(len(page)), uint64(to-at))]
		if _, err := mem.ReadGVA(kernel.Space, b, at); err != nil {
			return err
		}
		hash.Write(b)
	}
	fmt.Printf("text %016x of %d bytes\n", hash.Sum64(), to-from)
	return nil
}
