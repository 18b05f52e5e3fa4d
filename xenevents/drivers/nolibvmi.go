//go:build !libvmi

package drivers

import (
	"context"

	"github.com/hprobe/hprobe/xenevents"
)

func openDump(string) (Dump, error) { return nil, errWithout("") }

func openLibVMI(context.Context, Options) (Host, error) {
	return nil, errWithout(", or --driver native")
}

func errWithout(other string) error {
	return &xenevents.UnsupportedError{Feature: "LibVMI", Need: "a binary that was built with it (make build does so where pkg-config finds libvmi)" + other}
}
