package policy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("policy.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plain is a YAML node as JSON's values: a day is a text there.
func plain(t *testing.T, n *yaml.Node) any {
	t.Helper()
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			m[n.Content[i].Value] = plain(t, n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		l := []any{}
		for _, c := range n.Content {
			l = append(l, plain(t, c))
		}
		return l
	}
	if tag := n.ShortTag(); tag != "!!int" && tag != "!!bool" && tag != "!!float" && tag != "!!null" {
		return n.Value
	}
	var v any
	if err := n.Load(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// documents are the YAML documents of a text, as the schema sees them.
func documents(t *testing.T, text string) (all []any) {
	t.Helper()
	r := &reader{}
	for _, n := range r.documents([]byte(text)) {
		all = append(all, plain(t, n))
	}
	if r.all != nil {
		t.Fatal(r.all)
	}
	return all
}

// examples are the policies in the documentation, which is generated.
func examples(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	if len(all) < 4 {
		t.Fatalf("%d examples", len(all))
	}
	return all
}

// TestSchemaTakesPolicies: what hprobe takes the schema takes, too: stock policies, the
// documentation's examples, and a policy with all fields.
func TestSchemaTakesPolicies(t *testing.T) {
	s := compiledSchema(t)
	texts := append(examples(t), everything)
	for _, p := range Stock() {
		text, err := StockText(p.Name())
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	for i, text := range texts {
		if _, err := Parse(fmt.Sprintf("text %d", i), []byte(text)); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
		for _, doc := range documents(t, text) {
			if err := s.Validate(doc); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		}
	}
}

// TestSchemaRefuses: an editor marks what hprobe refuses as far as a schema can say it.
func TestSchemaRefuses(t *testing.T) {
	s := compiledSchema(t)
	for _, name := range []string{
		"a list", "a text", "all errors", "missing", "nothing", "number as text", "bool as text", "text as bool", "list as text", "text as list", "empty list", "long list", "long text", "bad name", "percent",
		"per second", "fraction", "negative", "duration", "date", "version", "system", "labels", "nowhere", "two places", "severity", "watchdogs",
	} {
		for _, doc := range documents(t, wrong[name].file) {
			if err := s.Validate(doc); err == nil {
				t.Errorf("%s: the schema takes\n%s", name, wrong[name].file)
			}
		}
	}
}

// everything has each field of the language.
const everything = `
apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: all, title: t, description: d, references: ['https://example.org'], tags: [a]}
spec:
  domains: {names: ['*', '!x'], labels: {tier: front}, os: linux}
  mode: enforce
  expires: 2030-01-31
  unless: [{kernel: '>= 6.1 < 6.2', banner: Debian, symbol: s, field: a.b.c, bytes: {at: f+0x10, is: 0f 1f}}]
  counters: [{name: c, key: tid}]
  probes:
    - {name: a, at: [f, 0xffffffff81000000], only: [{symbol: f}], capture: [x, y=z], when: x > 1, then: {count: c, threshold: 3, finding: {severity: high}, pause: true}, budget: {hitsPerSecond: 1, stalledPercent: 1}}
    - {name: b, syscalls: [openat, execve], then: {deny: -13}}
    - {name: c, register: cr3, async: true, then: {finding: {severity: info, tags: [b], message: 'm {pid}'}}}
    - {name: d, cpuid: 0x40000000, then: {finding: {}}}
    - {name: e, memory: 'sys_call_table:64', access: rw, then: {deny: write}}
    - {name: f, at: 'image:/bin/sh!main', return: true, comm: sh, image: {offset: 4096, code: 55 48 89 e5, buildID: '0123'}, then: {set: ['ret=0']}}
    - {name: g, at: loop_end, then: {reset: c}}
    - {name: h, at: beat}
  watchdogs: [{name: w, expect: h, within: 1m30s, clock: host, from: first, finding: {message: gone}}]
`
