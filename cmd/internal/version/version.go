// Package version says which hprobe this is.
package version

import (
	"cmp"
	"runtime/debug"
)

// version is set by the Makefile's linker flags.
var version string

// String is the version: the Makefile's, or else what Go knows of the build.
func String() string {
	if version != "" {
		return version
	}
	info, _ := debug.ReadBuildInfo()
	return built(info)
}

// built is the commit of a build in a work tree, the version of one by
// go install hprobe@version, or "devel".
func built(info *debug.BuildInfo) string {
	if info == nil {
		return "devel"
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision != "" {
		return revision + dirty
	}
	if info.Main.Version == "(devel)" {
		return "devel"
	}
	return cmp.Or(info.Main.Version, "devel")
}
