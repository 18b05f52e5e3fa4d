package stopgap

import (
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// vmsplice is the paper's example. The caller's iovec is looked at when the call is
// made, as the paper does. Another thread may change it before the kernel copies it, so
// the kernel's copy is looked at, too: at the calls by which __do_sys_vmsplice uses it,
// one in each direction of the pipe (fs/splice.c). A refusal there comes before any page
// is touched, and the kernel frees what it has for the call. A 32-bit program's calls
// come by there as well.
var vmsplice = Rule{
	Name: "vmsplice", Title: "vmsplice() with a huge iovec (CVE-2008-0600)", At: "__x64_sys_vmsplice",
	Limit: 0x7fffffff, Errno: EFAULT, lengths: vmspliceLengths,
	after: []place{
		{at: "__do_sys_vmsplice:iov_iter_get_pages2|iov_iter_get_pages", limit: maxTotal, fields: iterFields, lengths: toPipeLengths},
		{at: "__do_sys_vmsplice:__splice_from_pipe", limit: maxTotal, fields: append(slices.Clip(iterFields), "splice_desc.u.data"), lengths: toUserLengths},
	},
}

const (
	// maxSegments is Linux's UIO_MAXIOV: vmsplice takes no more.
	maxSegments = 1024
	// maxTotal is Linux's MAX_RW_COUNT (include/linux/fs.h), in bytes: the copy has what
	// is over it in all cut off, so that a length over the limit is one of this there.
	maxTotal = 0x7ffff000
	// iovecSize and iovecLen are struct iovec's, which is ABI: base u64, len u64.
	iovecSize = 16
	iovecLen  = 8
)

// vmspliceLengths follows the iovec in the caller's memory: vmsplice(fd, iov, nr_segs, flags).
func vmspliceLengths(h detectors.Hit, each func(string, uint64) bool) error {
	iov, err := h.Arg(1)
	if err != nil {
		return err
	}
	segments, err := h.Arg(2)
	if err != nil {
		return err
	}
	return iovecLengths(h, iov, segments, each)
}

func iovecLengths(h detectors.Hit, iov, segments uint64, each func(string, uint64) bool) error {
	for i := range min(segments, maxSegments) {
		v, err := h.ReadUint64(xenevents.GVA(iov + i*iovecSize + iovecLen))
		if err != nil {
			return err
		}
		if !each(fmt.Sprintf("iov[%d].iov_len", i), v) {
			return nil
		}
	}
	return nil
}

// iterFields are the members of the kernel's copy, by the constants.
var iterFields = []string{"iov_iter.iov_offset", "iov_iter.count", "iov_iter.nr_segs", "iov_iter.__iov|iov"}

const (
	iterOffset = iota
	iterCount
	iterSegments
	iterIovec
	spliceData
)

// toPipeLengths are those of iov_iter_get_pages(iter, …).
func toPipeLengths(h detectors.Hit, each func(string, uint64) bool) error {
	iter, err := h.Arg(0)
	if err != nil {
		return err
	}
	return iterLengths(h, iter, each)
}

// toUserLengths are those of __splice_from_pipe(pipe, sd, actor): sd's data is the iter.
func toUserLengths(h detectors.Hit, each func(string, uint64) bool) error {
	sd, err := h.Arg(1)
	if err != nil {
		return err
	}
	iter, err := h.ReadUint64(xenevents.GVA(sd + h.Field(spliceData)))
	if err != nil {
		return err
	}
	return iterLengths(h, iter, each)
}

// iterLengths are those of a struct iov_iter. One that a part of was used is of a call
// that was judged before.
func iterLengths(h detectors.Hit, iter uint64, each func(string, uint64) bool) error {
	var v [iterIovec + 1]uint64
	for i := range v {
		var err error
		if v[i], err = h.ReadUint64(xenevents.GVA(iter + h.Field(i))); err != nil {
			return err
		}
	}
	switch {
	case v[iterOffset] != 0:
		return nil
	case v[iterSegments] == 1: // since Linux 6.4 it has no iovec then
		each("iov[0].iov_len, as copied,", v[iterCount])
		return nil
	case v[iterCount] >= maxTotal && !each("all of iov, as copied,", v[iterCount]):
		return nil
	}
	return iovecLengths(h, v[iterIovec], v[iterSegments], func(fact string, n uint64) bool { return each(fact+", as copied,", n) })
}
