package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// opened is the guest as hprobe's commands have it, without their start: in the lab that
// takes them longer than all else.
type opened struct {
	*guestos.Kernel
	dom   drivers.Domain
	close func() error
}

func open(ctx context.Context) (o *opened, err error) {
	host, err := monitor.Open(ctx, monitor.Profile, drivers.Options{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, host.Close())
		}
	}()
	dom, err := host.Host.Open(ctx, host.Guest.ID)
	if err != nil {
		return nil, err
	}
	o = &opened{dom: dom.(drivers.Domain), close: func() error { return errors.Join(dom.Close(), host.Close()) }}
	p, err := isf.ReadFile(monitor.Profile)
	if err == nil {
		o.Kernel, err = guestos.FindKernel(dom, int(host.Guest.MaxVCPU)+1, p)
	}
	return o, err
}

// look is lookAt by the functions that hprobe's commands call.
func (o *opened) look(ctx context.Context, memory, files, churn uint32) (l look, err error) {
	l.mpid, l.fpid = memory, files
	n := 0
	// why is what an answer says of itself; its error if it is none.
	why := func(callErr error) (partial bool, all []string) {
		p := (*guestos.PartialError)(nil)
		if errors.As(callErr, &p) {
			l.exits[n], partial, all = 6, true, p.Why
		} else if err == nil {
			err = callErr
		}
		n++
		return partial, all
	}
	for _, list := range []struct {
		to      *processes
		threads bool
	}{{&l.threads, true}, {&l.one, false}} {
		all, err := o.Statuses(ctx, list.threads)
		list.to.Partial, list.to.Why = why(err)
		for i := range all {
			list.to.Processes = append(list.to.Processes, processOf(&all[i]))
		}
	}
	regions := func(to *regions, pid uint32) {
		all, err := o.Regions(ctx, pid)
		to.Partial, to.Why = why(err)
		for _, m := range all {
			to.Maps = append(to.Maps, region{m.Start.String(), m.End.String(), m.Rights.String(), m.File.Device.String(), m.File.Path, m.Offset, m.File.Inode, m.File.Deleted})
		}
	}
	open := func(to *openFiles, pid uint32) {
		all, err := o.OpenFiles(ctx, pid)
		to.Partial, to.Why = why(err)
		for _, f := range all {
			to.Files = append(to.Files, openFile{f.FD, fmt.Sprintf("0%o", f.Flags), f.File.Path, f.Position, f.File.Deleted})
		}
	}
	regions(&l.memory, memory)
	open(&l.files, files)
	loaded, loadedErr := o.Loaded(ctx)
	l.modules.Partial, l.modules.Why = why(loadedErr)
	for _, m := range loaded {
		l.modules.Modules = append(l.modules.Modules, module{m.Name, m.State, fmt.Sprintf("%#x", m.Base), m.Taints, m.Size, m.Refs, m.Users})
	}
	records, logErr := o.Log(ctx)
	l.log.Partial, l.log.Why = why(logErr)
	for _, r := range records {
		l.log.Log = append(l.log.Log, record{r.Seq, r.Time, r.Text})
	}
	regions(&l.churn, churn)
	open(&l.churned, churn)
	return l, err
}

func processOf(s *guestos.Status) process {
	n := &s.Namespaces
	return process{PID: s.PID, TID: s.TID, PPID: s.Parent, Threads: s.Threads, NSPids: s.Numbers, Comm: s.Comm, State: s.State.String(), Kernel: s.Kernel, UIDs: s.UID, GIDs: s.GID,
		Caps: fmt.Sprintf("%#x", s.Caps), Started: s.Started, Namespaces: spaces{n.PID, n.User, n.Mount, n.Net, n.UTS, n.IPC, n.Cgroup, n.Time}}
}
