package policy

import (
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	const (
		debian13 = "Linux version 6.12.118+deb13-amd64 (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-14) #1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-11-20)"
		debian12 = "Linux version 6.1.0-13-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP PREEMPT_DYNAMIC Debian 6.1.55-1 (2023-09-29)"
		debian10 = "Linux version 4.19.0-27-amd64 (debian-kernel@lists.debian.org) (gcc version 8.3.0 (Debian 8.3.0-6)) #1 SMP Debian 4.19.316-1 (2024-06-25)"
		backport = "Linux version 6.1.0-0.deb11.13-amd64 (debian-kernel@lists.debian.org) (gcc-10 (Debian 10.2.1-6) 10.2.1) #1 SMP PREEMPT_DYNAMIC Debian 6.1.55-1~bpo11+1 (2023-10-08)"
		ubuntu   = "Linux version 5.15.0-91-generic (buildd@lcy02) (gcc (Ubuntu 11.4.0) 11.4.0) #101-Ubuntu SMP Tue Nov 14 13:30:08 UTC 2023"
		rhel     = "Linux version 5.14.0-362.8.1.el9_3.x86_64 (mockbuild@x) (gcc (GCC) 11.4.1) #1 SMP PREEMPT_DYNAMIC Tue Oct 3"
		suse     = "Linux version 5.14.21-150500.55.39-default (geeko@buildhost) (gcc) #1 SMP PREEMPT_DYNAMIC"
		mainline = "Linux version 6.8.0 (me@here) (gcc) #1 SMP"
		candid   = "Linux version 6.9.0-rc3+ (me@here) (gcc) #1 SMP"
		short    = "Linux version 7.2 (me@here)"
	)
	for _, c := range []struct {
		banner, in string
		want       bool
	}{
		{debian13, ">= 6.12.118", true}, {debian13, "> 6.12.118", false}, {debian13, "<= 6.12.118", true}, {debian13, "= 6.12.118", true}, {debian13, "< 6.13", true}, {debian13, ">= 6.12.9", true}, {debian13, ">= 6.9", true},
		{debian12, ">= 6.1.10", true}, {debian12, ">= 6.1.56", false}, {debian12, "= 6.1.0", false}, {debian12, ">= 6.1.10 < 6.2", true}, {debian12, ">= 6.1.10 < 6.1.50", false}, {debian12, ">= 6.1.0-13", true}, {debian12, ">= 6.1.0-14", false},
		{debian10, ">= 4.19.229 < 4.20", true}, {backport, ">= 6.1.55", true}, {backport, "< 6.1.55", false},
		// Which release of the series it is, nobody knows: neither is true.
		{ubuntu, ">= 5.15.16", false}, {ubuntu, "< 5.15.16", false}, {ubuntu, "< 5.16", true}, {ubuntu, ">= 5.15", true}, {ubuntu, ">= 5.14.3", true}, {ubuntu, ">= 5.15.0-91", true}, {ubuntu, ">= 5.15.0-91.1", false}, {ubuntu, "< 5.15.0-92", true}, {ubuntu, ">= 5.4.0-10", false},
		{rhel, ">= 5.14.1", false}, {rhel, "< 5.14.1", false}, {rhel, ">= 5.14.0-362.8", true}, {rhel, "< 5.14.0-362.13.1", true}, {rhel, ">= 4.18.0-500", false},
		{suse, ">= 5.14.21", true}, {suse, ">= 5.14.21-150500.55.44", false}, {suse, "< 5.14.22", true},
		{mainline, "= 6.8", true}, {mainline, ">= 6.8.1", false}, {mainline, ">= 6.8.0-10", false}, {candid, "< 6.9.1", true}, {short, ">= 7.2", true}, {short, "< 7.2.1", true},
	} {
		var v Versions
		if err := v.UnmarshalText([]byte(c.in)); err != nil {
			t.Fatal(err)
		}
		r, err := parseRelease(c.banner)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.in(r); got != c.want {
			t.Errorf("%q of %+v: %v", c.in, r, got)
		}
	}
	for _, bad := range []string{"", "FreeBSD 14", "Linux version x", strings.Repeat("\x1b", 300)} {
		if r, err := parseRelease(bad); err == nil || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 1000 {
			t.Errorf("%q: %+v, %v", bad, r, err)
		}
	}
	for _, bad := range []string{"", " ", "6.1", ">= ", ">= 6.1.2.3.4", ">= 6.1-", "== 6.1", ">= 6.1,< 6.2", ">= 6.1 or"} {
		var v Versions
		if err := v.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, v)
		}
	}
}

func FuzzRelease(f *testing.F) {
	f.Add("Linux version 6.1.0-13-amd64 (debian) #1 SMP Debian 6.1.55-1 (2023-09-29)", ">= 6.1.10 < 6.2")
	f.Add("Linux version 5.15.0-91-generic", ">= 5.15.0-91.101")
	f.Add("Linux version 99999999999999999999.1", "= 99999999999999999999")
	f.Fuzz(func(_ *testing.T, banner, in string) {
		r, err := parseRelease(banner)
		var v Versions
		if err == nil && v.UnmarshalText([]byte(in)) == nil {
			v.in(r)
			_ = r.name()
		}
	})
}
