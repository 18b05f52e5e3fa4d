//go:build libvmi

package drivers

import (
	"context"

	"github.com/hprobe/hprobe/xenevents/libvmi"
)

var _ Domain = (*libvmi.Domain)(nil)
var _ Events = (*libvmi.Events)(nil)

func openDump(path string) (Dump, error) {
	d, err := libvmi.OpenDump(path)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func openLibVMI(ctx context.Context, o Options) (Host, error) {
	h, err := libvmi.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return h, nil
}
