//go:build !libvmi

package drivers

import (
	"context"

	"github.com/hprobe/hprobe/xenevents"
)

func openLibVMI(context.Context, Options) (Host, error) {
	return nil, &xenevents.UnsupportedError{Feature: "LibVMI", Need: "a binary that was built with it (make build does so where pkg-config finds libvmi), or --driver native"}
}
