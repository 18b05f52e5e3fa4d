package sinks

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

// Config is one sink: which findings go to it, in which format, and where it is.
// Exactly one of File, Syslog, Journal and Webhook is given.
type Config struct {
	// Name names it in the log, in metrics, and the folder of its queue. "": what it is.
	Name string `json:"name,omitempty" yaml:"name,omitempty"`
	// MinSeverity leaves out what is less severe. "": nothing.
	MinSeverity string `json:"min_severity,omitempty" yaml:"min_severity,omitempty"`
	// Domains are patterns of domains' names, as in path.Match: those of one that fits
	// none are left out. Empty: all domains'.
	Domains []string `json:"domains,omitempty" yaml:"domains,omitempty"`
	// Format is "json", which is the default, or "ocsf".
	Format string `json:"format,omitempty" yaml:"format,omitempty"`

	File    *rotate.Config `json:"file,omitempty" yaml:"file,omitempty"`
	Syslog  *Syslog        `json:"syslog,omitempty" yaml:"syslog,omitempty"`
	Journal *Journal       `json:"journal,omitempty" yaml:"journal,omitempty"`
	Webhook *Webhook       `json:"webhook,omitempty" yaml:"webhook,omitempty"`
}

// kind is what it is; "" where that is not clear.
func (c *Config) kind() string {
	var kinds []string
	for kind, given := range map[string]bool{"file": c.File != nil, "syslog": c.Syslog != nil, "journal": c.Journal != nil, "webhook": c.Webhook != nil} {
		if given {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) != 1 {
		return ""
	}
	return kinds[0]
}

func (c *Config) name() string { return cmp.Or(c.Name, c.kind()) }

// names of sinks are parts of files' names.
var names = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// Check says what is wrong with a configuration of all sinks, and what to write instead.
func Check(configs []Config) error {
	seen := map[string]bool{}
	for i := range configs {
		c := &configs[i]
		if err := c.check(); err != nil {
			return fmt.Errorf("findings: sink %q (number %d): %w", c.name(), i+1, err)
		}
		if seen[c.name()] {
			return fmt.Errorf("findings: there are two sinks %q: give each a name of its own", c.name())
		}
		seen[c.name()] = true
	}
	return nil
}

func (c *Config) check() error {
	if c.kind() == "" {
		return fmt.Errorf("write exactly one of file, syslog, journal and webhook")
	}
	if !names.MatchString(c.name()) {
		return fmt.Errorf("name: %q: write 1 to 32 small letters, digits, - and _", c.Name)
	}
	if _, err := severityOf(c.MinSeverity); err != nil {
		return err
	}
	for _, d := range c.Domains {
		if _, err := path.Match(d, ""); err != nil || d == "" {
			return fmt.Errorf("domains: %q is no pattern of a name: write web-1, or web-* with * ? or [a-z]", d)
		}
	}
	if c.Format != "" && encoders[c.Format] == nil {
		return fmt.Errorf("format: %q is not known: write json or ocsf", c.Format)
	}
	var of string
	var err error
	switch of = c.kind(); of {
	case "file":
		err = c.File.Check()
	case "syslog":
		err = c.Syslog.check()
	case "journal":
		err = c.Journal.check()
	case "webhook":
		err = c.Webhook.check()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", of, err)
	}
	return nil
}

// severityOf reads the least severity that a sink wants; "": all.
func severityOf(name string) (detectors.Severity, error) {
	if name == "" {
		return detectors.Informational, nil
	}
	s, err := detectors.ParseSeverity(name)
	if err != nil {
		return s, fmt.Errorf("min_severity: %w", err)
	}
	return s, nil
}

// filter returns what says whether a finding is for the sink of a checked Config.
func (c *Config) filter() func(*detectors.Finding) bool {
	least, _ := severityOf(c.MinSeverity)
	domains := slices.Clone(c.Domains)
	return func(f *detectors.Finding) bool {
		return f.Severity >= least && (len(domains) == 0 || slices.ContainsFunc(domains, func(pattern string) bool {
			ok, _ := path.Match(pattern, f.Domain)
			return ok
		}))
	}
}

// Where says where its findings go, for people.
func (c *Config) Where() string {
	switch c.kind() {
	case "file":
		return c.File.Path
	case "webhook":
		return c.Webhook.URL
	}
	return c.kind()
}
