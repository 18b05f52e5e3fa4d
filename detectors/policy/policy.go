// Package policy reads policies: YAML files that say which guests are watched, where,
// and what happens at a match, without a line of code. A policy is compiled for each
// guest, with the types of the kernel that it runs, to a detectors.Detector.
package policy

import (
	"fmt"

	"go.yaml.in/yaml/v4"
)

//go:generate go run ./internal/generate

// Version and Kind are what a document says it is.
const (
	Version = "hprobe/v1"
	Kind    = "ProbePolicy"
)

// Modes.
const (
	Observe = "observe"
	Enforce = "enforce"
)

// The comments of the fields are the policy reference and the schema's descriptions:
// make generate.

// Policy is one document of a policy file.
type Policy struct {
	// What the document is written for.
	APIVersion string `yaml:"apiVersion" is:"required; enum=hprobe/v1"`
	// What the document is.
	Kind string `yaml:"kind" is:"required; enum=ProbePolicy"`
	// What the policy is called, and what people are told about it.
	Metadata Metadata `yaml:"metadata" is:"required"`
	// What it does.
	Spec Spec `yaml:"spec" is:"required"`

	file      string
	doc       *yaml.Node
	positions map[string]position
}

// Metadata is about the policy.
type Metadata struct {
	// The policy's name: lower case letters, digits, `-` and `.`. A policy that is applied takes the place of the one with its name.
	Name string `yaml:"name" is:"required; max=63; pattern=^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$; example=cve-2022-0185"`
	// One line about it.
	Title string `yaml:"title" is:"max=200; example=fsconfig() with an option that overflows its page"`
	// What it covers and what it does not.
	Description string `yaml:"description" is:"max=16384"`
	// Where one can read more: addresses.
	References []string `yaml:"references" is:"max=32"`
	// Words that each of the policy's findings has, before those of the finding itself.
	Tags []string `yaml:"tags" is:"max=32; example=[cve-2022-0185]"`
}

// Spec is what a policy does.
type Spec struct {
	// Which guests it is for. All that is said must be true of a guest.
	Domains Domains `yaml:"domains" is:"required"`
	// With `observe` findings say what would be done; with `enforce` verdicts (`deny`, `set`, `pause`) are carried out.
	Mode string `yaml:"mode" is:"enum=observe|enforce; default=observe"`
	// The last day on which it does anything, in UTC.
	Expires Date `yaml:"expires" is:"example=2027-12-31"`
	// A guest needs no such policy if one of these is true of its kernel.
	Unless []Check `yaml:"unless"`
	// Counters that the probes share. Each guest has its own.
	Counters []Counter `yaml:"counters" is:"max=16"`
	// Where the guest is watched, and what happens there.
	Probes []Probe `yaml:"probes" is:"required; min=1"`
	// What is to happen again and again, and is a finding where it does not.
	Watchdogs []Watchdog `yaml:"watchdogs" is:"max=16"`
}

// Domains choose guests.
type Domains struct {
	// Patterns of names or UUIDs, in which `*` is any text, `?` one character, `[ab]` one of several. `!` before one leaves guests out; where all have it, all others are meant.
	Names []string `yaml:"names" is:"example=['web-*', '!web-test']"`
	// Labels that the guest has, with their values.
	Labels map[string]string `yaml:"labels" is:"example={tier: front}"`
	// The guest's system.
	OS string `yaml:"os" is:"enum=linux; default=linux"`
}

// Check is something that is true or false of a guest's kernel: all that it says is.
type Check struct {
	// Its version, as one or several comparisons that all hold: `>= 6.1.10`, `>= 5.15.16 < 5.16`. Numbers of the kernel's own releases (`6.1.10`) are compared with those, also where a distribution says them elsewhere than in the release (Debian's 6.1.0-13 is 6.1.55); numbers with a build (`5.15.0-91`) with a distribution's of the same base. Where the kernel does not say which release of its series it is, a comparison within the series is false.
	Kernel Versions `yaml:"kernel" is:"max=200; example='>= 5.16.2'; pattern=^\\s*((<|<=|>|>=|=)\\s*[0-9]+(\\.[0-9]+){0,3}(-[0-9]+(\\.[0-9]+){0,3})?\\s*)+$"`
	// A text in its banner (the line of /proc/version).
	Banner string `yaml:"banner" is:"max=200; example=-Ubuntu"`
	// A symbol that it has.
	Symbol string `yaml:"symbol" is:"max=512; example=iov_iter_get_pages2"`
	// A member that a struct has.
	Field string `yaml:"field" is:"max=512; pattern=^[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z_][A-Za-z0-9_]*)+$; example=iov_iter.__iov"`
	// Bytes that it has at a place.
	Bytes *Bytes `yaml:"bytes"`
}

// Bytes are what is at a place of the guest's kernel.
type Bytes struct {
	// The place: `symbol` or `symbol+0x10`.
	At string `yaml:"at" is:"required; max=512; example=vfs_read+0x10"`
	// The bytes, two hexadecimal digits each. The kernel itself changes some of its code: alternatives, static keys, ftrace's places.
	Is Hex `yaml:"is" is:"required; max=800; pattern=^\\s*([0-9a-fA-F]{2}\\s*)+$; example='0f 1f 44 00 00'"`
}

// Counter counts matches by a key.
type Counter struct {
	// What probes call it.
	Name string `yaml:"name" is:"required; max=63; pattern=^[A-Za-z_][A-Za-z0-9_-]*$; example=iterations"`
	// Counts each value of this expression by itself, with the names that each of its probes has: `tid`, `pid`, `comm`. Without it all are counted together. 4,096 keys are counted at a time; then the one goes that was not seen for the longest.
	Key string `yaml:"key" is:"example=tid"`
}

// Probe is a place in the guest, and what happens there. It is at one of `at`, `syscalls`, `register`, `cpuid` and `memory`.
type Probe struct {
	// What it is called in this policy and in findings.
	Name string `yaml:"name" is:"required; max=63; pattern=^[A-Za-z_][A-Za-z0-9_-]*$; example=copied"`
	// An instruction: `symbol`, `symbol+0x10`, `module!symbol`, `caller:callee` (`caller:one|another`), `image:PATH!symbol`, `image:PATH+0x1234` or an address. Of several the first that the guest's kernel has.
	At Any `yaml:"at" is:"one; number; max=8; example=[bprm_execve, __do_execve_file]"`
	// System calls by their names: `[openat, execve]`, `[all, '!read', '!write']`.
	Syscalls []string `yaml:"syscalls" is:"one; max=512; example=[ptrace]"`
	// A register that is written: `cr0`, `cr3`, `cr4`, `cr4:smep,smap`, `lstar`, `msr:0xc0000082`.
	Register string `yaml:"register" is:"one; max=200; example=cr4:smep,smap"`
	// A leaf of CPUID that is asked for, or `any`.
	CPUID string `yaml:"cpuid" is:"one; number; max=200; example=0x40000000"`
	// Memory that is accessed: `symbol`, `symbol+0x10:4`, `module!symbol`, `0xffff888000001000+16`, `phys:0x1000+8`; 8 bytes where it does not say.
	Memory string `yaml:"memory" is:"one; max=512; example=sys_call_table:64"`
	// Which accesses to the memory: `r`, `w`, `x`, or several.
	Access string `yaml:"access" is:"pattern=^[rwx]{1,3}$; default=w"`
	// The guest does not wait at a write of cr0, cr3 or cr4.
	Async bool `yaml:"async"`
	// The end of each call is judged, not its beginning: there is `ret` in place of the arguments.
	Return bool `yaml:"return"`
	// Of a place in an image: only in processes that are called so.
	Comm string `yaml:"comm" is:"max=15; example=nginx"`
	// Of a place in an image: what the operator's own copy of the file says of it. Without it the place is found in the memory of a process that runs the image.
	Image *Image `yaml:"image"`
	// The probe is for kernels of which one of these is true, and left out in others.
	Only []Check `yaml:"only"`
	// What findings have beside their message: `EXPR` or `NAME=EXPR`, numbers only. Without it all arguments.
	Capture []string `yaml:"capture" is:"max=32; example=[flags, size=ctx.data_size]"`
	// Only hits at which this is true match. An expression in CEL.
	When string `yaml:"when" is:"default=every hit matches; example=uid != 0"`
	// What happens at a match.
	Then Then `yaml:"then"`
	// What it may cost the guest. One that enforces a verdict has no bound where it says none.
	Budget Budget `yaml:"budget"`
}

// Image is a place in the file of a user program or library.
type Image struct {
	// Its offset in the file, in bytes.
	Offset uint64 `yaml:"offset" is:"required; max=0xffffffffff"`
	// What the file has there, from the first byte of an instruction on: at least 15 bytes where it has as many.
	Code Hex `yaml:"code" is:"required; max=200; pattern=^\\s*([0-9a-fA-F]{2}\\s*)+$; example='55 48 89 e5'"`
	// The file's build id; without it any file with this name and code is taken.
	BuildID Hex `yaml:"buildID" is:"max=200; pattern=^\\s*([0-9a-fA-F]{2}\\s*)+$"`
}

// Then is what happens at a match. A probe that a watchdog expects need do nothing else.
type Then struct {
	// A finding. `{}` is one with the defaults. With a threshold or verdict there is one anyway.
	Finding *Finding `yaml:"finding"`
	// The counter that counts the match.
	Count string `yaml:"count" is:"max=63; example=iterations"`
	// The counter that is set back to 0, for the key of this match.
	Reset string `yaml:"reset" is:"max=63; example=iterations"`
	// Act from this count on. Verdicts are carried out at each match from there on; there is a finding at this one, and one each time that the count has doubled.
	Threshold uint64 `yaml:"threshold" is:"min=1; max=0x7fffffffffffffff"`
	// The function does not run, and returns this: an error's name, or a number. Only where a function is entered or called. Of a register or memory: `write`, and the write has no effect.
	Deny string `yaml:"deny" is:"number; max=64; example=EPERM"`
	// What is changed: `PLACE=EXPR`, where a place is a register (`rsi`), an argument, a member (`file.f_flags`), `u8(a)` to `u64(a)` or `mem(a)`.
	Set []string `yaml:"set" is:"max=16; example=[flags=0]"`
	// The guest is paused before the instruction, until somebody has it go on.
	Pause bool `yaml:"pause"`
}

// Finding is what a finding says.
type Finding struct {
	// How bad it is.
	Severity string `yaml:"severity" is:"enum=info|medium|high; default=medium, or high with a verdict"`
	// Words to sort findings by.
	Tags []string `yaml:"tags" is:"max=32"`
	// What it says. `{EXPR}` is a value at the match, `{{` a brace; in a watchdog's there are no values.
	Message string `yaml:"message" is:"example=pid {pid} became root"`
}

// Budget bounds what a probe costs its guest; over it the probe is suspended for a while.
type Budget struct {
	// How many hits a second.
	HitsPerSecond uint64 `yaml:"hitsPerSecond" is:"min=1; max=1000000000; default=25000"`
	// How much of each second vCPUs may wait for hprobed, in percent of one vCPU's time.
	StalledPercent uint32 `yaml:"stalledPercent" is:"min=1; max=12800; default=25"`
}

// Watchdog expects that a probe matches again and again.
type Watchdog struct {
	// What it is called in this policy and in findings.
	Name string `yaml:"name" is:"required; max=63; pattern=^[A-Za-z_][A-Za-z0-9_-]*$; example=alive"`
	// The probe.
	Expect string `yaml:"expect" is:"required; max=63; example=heartbeat"`
	// It is to match at least once within this time: from 100ms to 24h.
	Within Duration `yaml:"within" is:"required; max=32; example=10s; pattern=^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$"`
	// Of which time: `guest` stands still while the guest is paused, `host` does not.
	Clock string `yaml:"clock" is:"enum=guest|host; default=guest"`
	// From when on: `armed`, when the policy is in place, or `first`, when the probe has matched once.
	From string `yaml:"from" is:"enum=armed|first; default=armed"`
	// The finding where it does not match. Another one says when it does again.
	Finding Finding `yaml:"finding"`
}

// File is what Parse was told that its file is called.
func (p *Policy) File() string { return p.file }

// Source is its document alone, as YAML: what Parse makes the same policy of.
func (p *Policy) Source() ([]byte, error) {
	text, err := yaml.Marshal(p.doc)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Name(), err)
	}
	return text, nil
}

// Name is the policy's.
func (p *Policy) Name() string { return p.Metadata.Name }

// Enforces says whether verdicts are carried out.
func (p *Policy) Enforces() bool { return p.Spec.Mode == Enforce }
