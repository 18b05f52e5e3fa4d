// Package config reads hprobed's configuration: one YAML file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/hprobe/hprobe/cmd/internal/metrics"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
	"github.com/hprobe/hprobe/profiles/near"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// DefaultFile is where hprobed looks for its configuration.
const DefaultFile = "/etc/hprobe/hprobed.yaml"

// DefaultState is the folder that is hprobed's own.
const DefaultState = "/var/lib/hprobe"

// Config is what the file says. A field that it does not have is its zero value, which is
// the default.
type Config struct {
	// Socket is where hprobed listens for hprobe, and Group the group that may use it beside
	// root. They, Driver, Poll, State and Metrics are read when hprobed starts only.
	Socket string `yaml:"socket"`
	Group  string `yaml:"group"`
	// Driver is how to speak to Xen, Poll for how many CPU cycles to poll for an event.
	Driver string `yaml:"driver"`
	Poll   int64  `yaml:"poll"`
	// State is the folder that is hprobed's own: policies that hprobe applied, queues.
	State string `yaml:"state"`
	// Profiles are folders with profiles; new ones go to the first. Capture is that a missing
	// one is made from the guest's memory; nil: yes.
	Profiles []string `yaml:"profiles"`
	Capture  *bool    `yaml:"capture"`
	// Policies are files, and folders whose *.yaml are meant; Stock are names of policies that
	// come with hprobe.
	Policies []string `yaml:"policies"`
	Stock    []string `yaml:"stock"`
	// Domains are what holds for guests of some names.
	Domains []Domain `yaml:"domains"`
	// Findings are where findings go.
	Findings []sinks.Config `yaml:"findings"`
	// Metrics is where Prometheus finds figures.
	Metrics metrics.Config `yaml:"metrics"`
	// Audit is where the commands of the control API are written down; nil: nowhere.
	Audit *rotate.Config `yaml:"audit"`
	// Verbose has hprobed log more.
	Verbose bool `yaml:"verbose"`

	file string
	line int // of policies
	// Read are the policies that Policies and Stock name.
	Read []*policy.Policy `yaml:"-"`
}

// Domain is what holds for guests of some names.
type Domain struct {
	Names  []string          `yaml:"names"`
	Labels map[string]string `yaml:"labels"`
	Ignore bool              `yaml:"ignore"`
}

// Error is what is wrong with a configuration. Its text has a line for each thing, with
// the file and the line in it.
type Error struct {
	File  string
	Lines []string // without the file
}

func (e *Error) Error() string {
	all := make([]string, len(e.Lines))
	for i, l := range e.Lines {
		all[i] = e.File + ":" + l
	}
	return strings.Join(all, "\n")
}

const maxFile = 1 << 20 // bytes

// Load reads a configuration, with the policies that it names. It fails with an *Error, with
// policy.Errors, or with why a file can't be read.
func Load(file string) (*Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("configuration: %w", err)
	case len(data) > maxFile:
		return nil, &Error{file, []string{fmt.Sprintf("1: the file is larger than %d bytes, which no configuration is", maxFile)}}
	}
	c, err := Parse(file, data)
	if err != nil {
		return nil, err
	}
	return c, c.readPolicies()
}

// Parse reads a configuration, without the policies that it names. Relative paths in it are
// beside the file.
func Parse(file string, data []byte) (*Config, error) {
	c := &Config{file: file}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, &Error{file, syntaxLines(err)}
	}
	var doc yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return c, nil // all is as by default
	case err != nil:
		return nil, &Error{file, syntaxLines(err)}
	}
	if err := yaml.Load(data, c, yaml.WithKnownFields()); err != nil {
		return nil, &Error{file, c.explain(syntaxLines(err))}
	}
	c.line = lineOfKey(&doc, "policies")
	if lines := c.check(&doc); lines != nil {
		return nil, &Error{file, lines}
	}
	return c, nil
}

// syntaxLines are the lines of an error of the YAML library, each "LINE: what".
func syntaxLines(err error) []string {
	var out []string
	for _, l := range strings.Split(err.Error(), "\n") {
		l = strings.TrimSpace(l)
		if m := lineOf.FindStringSubmatch(l); m != nil {
			out = append(out, m[1]+": "+m[2])
		}
	}
	if out == nil {
		out = []string{"1: " + strings.TrimPrefix(strings.TrimSpace(err.Error()), "yaml: ")}
	}
	return out
}

// lineOf finds the line in a line of the YAML library's errors.
var lineOf = regexp.MustCompile(`line (\d+)(?:, column \d+)?:? (.*)`)

// unknown is how the YAML library says that there is no such field.
var unknown = regexp.MustCompile(`field (\S+) not found in type (\S+)`)

// explain says of a field that is not known which there are.
func (c *Config) explain(lines []string) []string {
	for i, l := range lines {
		m := unknown.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		line, _, _ := strings.Cut(l, ":")
		names := fieldsOf(m[2])
		lines[i] = fmt.Sprintf("%s: there is no field %q here%s; there are %s", line, m[1], near.Hint(m[1], names), strings.Join(names, ", "))
	}
	return lines
}

// fieldsOf are the names of the fields of a struct that is part of a Config, by its Go name.
func fieldsOf(goName string) []string {
	var found []string
	seen := map[reflect.Type]bool{}
	var visit func(reflect.Type)
	visit = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			if name == "" || name == "-" {
				continue
			}
			if t.String() == goName {
				found = append(found, name)
			}
			visit(t.Field(i).Type)
		}
	}
	visit(reflect.TypeFor[Config]())
	return found
}

// check says what makes no sense, each with the line where it is said.
func (c *Config) check(doc *yaml.Node) (lines []string) {
	wrong := func(key, format string, args ...any) {
		lines = append(lines, fmt.Sprintf("%d: %s: %s", lineOfKey(doc, key), key, fmt.Sprintf(format, args...)))
	}
	if !slices.Contains([]string{"", drivers.Auto, drivers.Native, drivers.LibVMI}, c.Driver) {
		wrong("driver", "there is no driver %q: it is %s, %s or %s", c.Driver, drivers.Auto, drivers.LibVMI, drivers.Native)
	}
	for key, p := range map[string]string{"socket": c.Socket, "state": c.State} {
		if p != "" && !filepath.IsAbs(p) {
			wrong(key, "%q is no absolute path: begin it with /", p)
		}
	}
	for _, p := range c.Profiles {
		if !filepath.IsAbs(p) {
			wrong("profiles", "%q is no absolute path: begin it with /", p)
		}
	}
	var known []string
	for _, p := range policy.Stock() {
		known = append(known, p.Name())
	}
	for _, name := range c.Stock {
		if !slices.Contains(known, name) {
			wrong("stock", "no policy %q comes with hprobe%s; there are %s", name, near.Hint(name, known), strings.Join(known, ", "))
		}
	}
	for i := range c.Domains {
		if why := c.Domains[i].check(); why != "" {
			wrong("domains", "number %d: %s", i+1, why)
		}
	}
	if err := sinks.Check(c.Findings); err != nil {
		wrong("findings", "%s", strings.TrimPrefix(err.Error(), "findings: "))
	}
	if err := c.Metrics.Check(); err != nil {
		wrong("metrics", "%s", strings.TrimPrefix(err.Error(), "metrics: "))
	}
	if c.Audit != nil {
		if err := c.Audit.Check(); err != nil {
			wrong("audit", "%v", err)
		}
	}
	slices.SortFunc(lines, func(a, b string) int { return number(a) - number(b) })
	return lines
}

func number(line string) int {
	n, _, _ := strings.Cut(line, ":")
	v, _ := strconv.Atoi(n)
	return v
}

func (d *Domain) check() string {
	if len(d.Names) == 0 {
		return "names is missing: patterns of guests' names, like web-*"
	}
	for _, n := range d.Names {
		if _, err := path.Match(strings.TrimPrefix(n, "!"), ""); err != nil || strings.TrimPrefix(n, "!") == "" {
			return fmt.Sprintf("names: %q is no pattern of a name: write web-1, or web-* with * ? or [a-z], and ! before it to leave guests out", n)
		}
	}
	return ""
}

// lineOfKey is the line of a key of the document, 1 where there is none.
func lineOfKey(doc *yaml.Node, key string) int {
	for _, m := range doc.Content {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if m.Content[i].Value == key {
				return m.Content[i].Line
			}
		}
	}
	return 1
}

// readPolicies reads those that the configuration names.
func (c *Config) readPolicies() error {
	var errs []error
	names := map[string]string{} // of policies, and their files
	add := func(all []*policy.Policy, err error) {
		errs = append(errs, err)
		for _, p := range all {
			if first, twice := names[p.Name()]; twice {
				errs = append(errs, fmt.Errorf("policy %s is in %s and in %s: take one out", p.Name(), first, p.File()))
				continue
			}
			names[p.Name()] = p.File()
			c.Read = append(c.Read, p)
		}
	}
	for _, p := range policy.Stock() {
		if slices.Contains(c.Stock, p.Name()) {
			add([]*policy.Policy{p}, nil)
		}
	}
	for _, p := range c.Policies {
		files, err := c.policyFiles(p)
		errs = append(errs, err)
		for _, f := range files {
			add(policy.ReadFile(f))
		}
	}
	return errors.Join(errs...)
}

// policyFiles are the files of policies at a path.
func (c *Config) policyFiles(p string) ([]string, error) {
	if !filepath.IsAbs(p) {
		p = filepath.Join(filepath.Dir(c.file), p)
	}
	info, err := os.Stat(p)
	switch {
	case err != nil:
		return nil, &Error{c.file, []string{fmt.Sprintf("%d: policies: %v: make it, or take it out", c.line, err)}}
	case !info.IsDir():
		return []string{p}, nil
	}
	return filepath.Glob(filepath.Join(p, "*.yaml"))
}
