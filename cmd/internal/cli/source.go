package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

const sourceHelp = `In place of --at, what is no instruction can be watched:

  hprobe probe add -d guest --register cr4:smep,smap   # writes that change these bits
  hprobe probe add -d guest --register lstar           # an MSR, also msr:0xc0000082
  hprobe probe add -d guest --register cr3 --async     # nobody waits; no verdicts
  hprobe probe add -d guest --cpuid 0x40000000         # CPUID of a leaf, or any
  hprobe probe add -d guest --memory sys_call_table:64 --access w
  hprobe probe add -d guest --register cr0:wp --when 'mask(new, 0x10000) == 0' \
      --deny write --mode enforce

A range of memory is written like symbol, symbol+0x10:4, module!symbol:16,
0xffff888000001000+16 or phys:0x1000+8; without a length it has 8 bytes. Each access
to its pages takes a detour through hprobed. Rules name old, new, rip and cpl; of
CPUID leaf, subleaf, eax, ebx, ecx and edx; of memory also access, address and length.`

func sourceFlags(cmd *cobra.Command, s *controlapi.Source) {
	f := cmd.Flags()
	f.StringVar(&s.Register, "register", "", "a register that is written: cr0, cr3, cr4, cr4:smep,smap, lstar, msr:NUMBER")
	f.StringVar(&s.Cpuid, "cpuid", "", "a leaf of CPUID that is asked for, or any")
	f.StringVar(&s.Memory, "memory", "", "a range of memory: symbol+OFFSET:LENGTH, ADDRESS+LENGTH, phys:ADDRESS+LENGTH")
	f.StringVar(&s.Access, "access", "", "which accesses to it: r, w, x, rw, rwx (default: w)")
	f.BoolVar(&s.Async, "async", false, "the guest does not wait at a write of cr0, cr3 or cr4")
}

// sourceOf is the source that the command line gives, or nil where it gives a place.
func sourceOf(cmd *cobra.Command, s *controlapi.Source) (*controlapi.Source, error) {
	var what []string
	for _, flag := range []string{"at", "syscall", "register", "cpuid", "memory"} {
		if cmd.Flags().Changed(flag) {
			what = append(what, "--"+flag)
		}
	}
	switch {
	case len(what) == 0:
		return nil, fmt.Errorf("%w: say --at, --syscall, --register, --cpuid or --memory (%s --help)", errUsage, cmd.CommandPath())
	case len(what) > 1:
		return nil, fmt.Errorf("%w: %s and %s exclude each other", errUsage, what[0], what[1])
	}
	if place := what[0] == "--at" || what[0] == "--syscall"; !place {
		return s, nil
	}
	if s.Async || s.Access != "" {
		return nil, fmt.Errorf("%w: --async is for registers, --access for memory", errUsage)
	}
	return nil, nil
}
