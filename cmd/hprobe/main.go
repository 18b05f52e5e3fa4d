// Command hprobe controls hprobed, and looks at hosts and guests.
package main

import (
	"os"

	"github.com/hprobe/hprobe/cmd/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
