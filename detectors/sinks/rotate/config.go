// Package rotate is a file of lines that begins anew when it is large or old.
package rotate

import (
	"fmt"
	"path/filepath"
)

// Config says where the file is, and when it begins anew. The old file gets the time
// at the end of its name.
type Config struct {
	Path string `json:"path" yaml:"path"`
	// MaxMiB is how large it gets, in MiB. 0: size does not matter.
	MaxMiB int `json:"max_mib,omitempty" yaml:"max_mib,omitempty"`
	// Every is "hour" or "day", in UTC: what is written in another one than what was
	// written last begins anew. "": age does not matter.
	Every string `json:"every,omitempty" yaml:"every,omitempty"`
	// Keep is how many old files stay. 0: all.
	Keep int `json:"keep,omitempty" yaml:"keep,omitempty"`
	// Compress has old files compressed, with "zstd" or "gzip".
	Compress string `json:"compress,omitempty" yaml:"compress,omitempty"`
	// Sync has what was written on the disk before more is: a machine that loses its
	// power loses no line.
	Sync bool `json:"sync,omitempty" yaml:"sync,omitempty"`
}

// layouts are the parts of a time that are the same in one hour, and in one day.
var layouts = map[string]string{"": "", "hour": "2006010215", "day": "20060102"}

// suffixes are what compressed files end in.
var suffixes = map[string]string{"": "", "zstd": ".zst", "gzip": ".gz"}

const maxMiB = 1 << 20

// Check says what is wrong, and what to write instead.
func (c *Config) Check() error {
	_, every := layouts[c.Every]
	_, compress := suffixes[c.Compress]
	switch {
	case !filepath.IsAbs(c.Path) || filepath.Clean(c.Path) != c.Path:
		return fmt.Errorf("path: %q is not the whole path of a file: write one from / on, without dots for folders", c.Path)
	case c.MaxMiB < 0 || c.MaxMiB > maxMiB:
		return fmt.Errorf("max_mib: %d is not a size: write MiB, 1 to %d, or 0 for a file that grows", c.MaxMiB, maxMiB)
	case !every:
		return fmt.Errorf("every: %q is not a time: write hour or day, or leave it out", c.Every)
	case c.Keep < 0:
		return fmt.Errorf("keep: %d: write how many old files to keep, or 0 to keep all", c.Keep)
	case !compress:
		return fmt.Errorf("compress: %q is not known: write zstd or gzip, or leave it out", c.Compress)
	}
	return nil
}
