// Command hprobed watches Xen guests from dom0.
package main

import (
	"os"

	"github.com/hprobe/hprobe/cmd/internal/daemoncli"
)

func main() { os.Exit(daemoncli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
