package guestos

// Namespaces are the name spaces that a thread is in, by the inode numbers that
// /proc/PID/ns shows of them. 0: it has none any more, or its kernel has no such kind.
type Namespaces struct{ PID, User, Mount, Net, UTS, IPC, Cgroup, Time uint32 }

// namespaceLayout is where the kernel keeps the number of each kind.
type namespaceLayout struct {
	pid, user uint64
	proxied   []proxied
}

// proxied is a kind that is in a struct nsproxy: where in it, and where the number is.
type proxied struct {
	at, number uint64
	to         func(*Namespaces) *uint32
}

func (k *Kernel) findNamespaceLayout(l *namespaceLayout) error {
	const number = "ns.inum"
	if err := k.locate(want(&l.pid, "pid_namespace", number), want(&l.user, "user_namespace", number)); err != nil {
		return err
	}
	for _, kind := range []struct {
		field, of string
		to        func(*Namespaces) *uint32
	}{
		{"mnt_ns", "mnt_namespace", func(n *Namespaces) *uint32 { return &n.Mount }}, {"net_ns", "net", func(n *Namespaces) *uint32 { return &n.Net }},
		{"uts_ns", "uts_namespace", func(n *Namespaces) *uint32 { return &n.UTS }}, {"ipc_ns", "ipc_namespace", func(n *Namespaces) *uint32 { return &n.IPC }},
		{"cgroup_ns", "cgroup_namespace", func(n *Namespaces) *uint32 { return &n.Cgroup }},
		{"time_ns", "time_namespace", func(n *Namespaces) *uint32 { return &n.Time }}, // since 5.6
	} {
		p := proxied{to: kind.to}
		if err := k.locateSome(want(&p.at, "nsproxy", kind.field), want(&p.number, kind.of, number)); err != nil {
			return err
		}
		if p.at != noField && p.number != noField {
			l.proxied = append(l.proxied, p)
		}
	}
	return nil
}

// namespaces reads those of a struct nsproxy. A thread that has ended has none.
func (k *Kernel) namespaces(l *namespaceLayout, proxy uint64, n *Namespaces) error {
	if proxy == 0 {
		return nil
	}
	for _, p := range l.proxied {
		space, err := k.read64(proxy + p.at)
		if err != nil {
			return err
		}
		if space == 0 { // the kernel was built without it
			continue
		}
		if *p.to(n), err = k.read32(space + p.number); err != nil {
			return err
		}
	}
	return nil
}
