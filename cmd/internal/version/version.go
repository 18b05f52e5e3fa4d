// Package version says which hprobe this is.
package version

import "runtime/debug"

// version is set by the Makefile's linker flags.
var version string

// String is the version: that of the build, or the commit.
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return "unknown"
}
