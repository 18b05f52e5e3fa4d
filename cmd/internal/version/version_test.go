package version

import (
	"runtime/debug"
	"testing"
)

func TestBuilt(t *testing.T) {
	in := func(main string, settings ...string) *debug.BuildInfo {
		info := &debug.BuildInfo{Main: debug.Module{Version: main}}
		for i := 0; i < len(settings); i += 2 {
			info.Settings = append(info.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return info
	}
	const commit = "1aaa260fe0b4e0f0a1b2c3d4e5f60718293a4b5c"
	for _, c := range []struct {
		want string
		info *debug.BuildInfo
	}{
		{"devel", nil}, {"devel", in("")}, {"devel", in("(devel)", "CGO_ENABLED", "0")}, {"v1.2.3", in("v1.2.3")},
		{"1aaa260fe0b4", in("v0.0.0-2026-1aaa260fe0b4", "vcs.revision", commit, "vcs.modified", "false")},
		{"1aaa260fe0b4-dirty", in("(devel)", "vcs.modified", "true", "vcs.revision", commit)},
		{"abc", in("", "vcs.revision", "abc")},
	} {
		if got := built(c.info); got != c.want {
			t.Errorf("%+v is %q, not %q", c.info, got, c.want)
		}
	}
	if got := String(); got == "" || got == "unknown" {
		t.Errorf("this is %q", got)
	}
}
