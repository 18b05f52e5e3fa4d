package sinks

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
)

// object is what OCSF 1.3.0 says of a class or an object: which attributes must be there,
// at least one of which, and of what type those are that hprobe has. A type is an object's
// name, or one of the dictionary's; with [] an array of it. An attribute that is not here
// is not OCSF's, or not hprobe's. Source: schema.ocsf.io/1.3.0, the objects of these names.
type object struct {
	required, oneOf []string
	types           map[string]string
}

var ocsfSchema = map[string]object{
	// with the profile security_control
	"detection_finding": {
		required: []string{"activity_id", "category_uid", "class_uid", "type_uid", "time", "severity_id", "metadata", "finding_info", "action_id"},
		types: map[string]string{"activity_id": "integer", "activity_name": "string", "category_uid": "integer", "category_name": "string", "class_uid": "integer", "class_name": "string",
			"type_uid": "integer", "type_name": "string", "time": "timestamp", "severity_id": "integer", "severity": "string", "status_id": "integer", "status": "string",
			"action_id": "integer", "action": "string", "disposition_id": "integer", "disposition": "string", "message": "string", "metadata": "metadata", "finding_info": "finding_info",
			"resources": "[]resource_details", "evidences": "[]evidences", "unmapped": "any"}},
	"metadata": {required: []string{"product", "version"}, types: map[string]string{"product": "product", "version": "string", "profiles": "[]string", "uid": "string"}},
	"product":  {required: []string{"vendor_name"}, oneOf: []string{"name", "uid"}, types: map[string]string{"vendor_name": "string", "name": "string", "version": "string"}},
	"finding_info": {required: []string{"title", "uid"},
		types: map[string]string{"title": "string", "uid": "string", "created_time": "timestamp", "analytic": "analytic", "types": "[]string"}},
	"analytic":         {required: []string{"type_id"}, oneOf: []string{"name", "uid"}, types: map[string]string{"type_id": "integer", "type": "string", "name": "string"}},
	"resource_details": {oneOf: []string{"name", "uid"}, types: map[string]string{"name": "string", "uid": "string", "type": "string"}},
	"evidences":        {oneOf: []string{"actor", "api", "connection_info", "data", "device", "dst_endpoint", "file", "process", "query", "url", "user"}, types: map[string]string{"process": "process"}},
	"process":          {oneOf: []string{"pid", "uid"}, types: map[string]string{"pid": "integer", "tid": "integer", "name": "string", "user": "user"}},
	"user":             {oneOf: []string{"account", "name", "uid"}, types: map[string]string{"uid": "string"}},
}

// validate returns what is wrong with a value of a type.
func validate(at, of string, v any) []string {
	if elem, ok := strings.CutPrefix(of, "[]"); ok {
		list, ok := v.([]any)
		if !ok {
			return []string{at + " is no array"}
		}
		var bad []string
		for i, v := range list {
			bad = append(bad, validate(fmt.Sprintf("%s[%d]", at, i), elem, v)...)
		}
		return bad
	}
	n, isNumber := v.(float64)
	_, isString := v.(string)
	switch of {
	case "any":
		return nil
	case "string":
		if !isString {
			return []string{at + " is no string"}
		}
		return nil
	case "integer", "timestamp":
		if !isNumber || n != float64(int64(n)) || of == "timestamp" && n < 1e12 {
			return []string{fmt.Sprintf("%s is no %s: %v", at, of, v)}
		}
		return nil
	}
	members, ok := v.(map[string]any)
	o, known := ocsfSchema[of]
	if !ok || !known {
		return []string{at + " is no " + of}
	}
	var bad []string
	for _, r := range o.required {
		if _, ok := members[r]; !ok {
			bad = append(bad, at+" lacks "+r)
		}
	}
	if len(o.oneOf) > 0 && !slices.ContainsFunc(o.oneOf, func(n string) bool { return members[n] != nil }) {
		bad = append(bad, fmt.Sprintf("%s has none of %v", at, o.oneOf))
	}
	for name, v := range members {
		t, ok := o.types[name]
		if !ok {
			bad = append(bad, at+" has "+name+", which "+of+" has not")
			continue
		}
		bad = append(bad, validate(at+"."+name, t, v)...)
	}
	return bad
}

func TestOCSFIsWhatTheSchemaSays(t *testing.T) {
	uid := uint32(1000)
	hostile := "a\x1b[2J\u202e\"\n\xff"
	for name, f := range map[string]detectors.Finding{
		"least": {Time: time.UnixMilli(1.7e12)},
		"all": {Time: time.UnixMilli(1.7e12), Domain: "web", DomainID: 7, Detector: "stopgap/vmsplice", Probe: "p", VCPU: 1, Severity: detectors.High, Message: "no", Blocked: true,
			Process: &detectors.Process{PID: 7, TID: 8, Comm: "sh", UID: &uid}, Facts: []detectors.Fact{{Name: "len", Value: 1 << 63}}},
		"idle task": {Time: time.UnixMilli(1.7e12), Process: &detectors.Process{}},
		"hostile":   {Time: time.UnixMilli(1.7e12), Domain: hostile, Message: hostile, Process: &detectors.Process{PID: 1, Comm: hostile}, Facts: []detectors.Fact{{Name: hostile}}},
	} {
		b, err := EncodeOCSF(&f, "v1")
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(b[:len(b)-1], func(c byte) bool { return c < ' ' || c > '~' }) || b[len(b)-1] != '\n' {
			t.Errorf("%s: %q is no line of ASCII", name, b)
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		for _, bad := range validate("finding", "detection_finding", v) {
			t.Errorf("%s: %s", name, bad)
		}
		if v["type_uid"] != v["class_uid"].(float64)*100+v["activity_id"].(float64) {
			t.Errorf("%s: type_uid is %v", name, v["type_uid"])
		}
		if name != "all" {
			continue
		}
		if v["severity_id"] != 4.0 || v["action_id"] != 2.0 || v["disposition_id"] != 2.0 {
			t.Errorf("%s", b)
		}
		// The test can fail: without any of its parts it is none.
		for part := range maps.Clone(v) {
			if slices.Contains(ocsfSchema["detection_finding"].required, part) {
				kept := v[part]
				delete(v, part)
				if len(validate("finding", "detection_finding", v)) == 0 {
					t.Errorf("without %s it is valid", part)
				}
				v[part] = kept
			}
		}
	}
}

func TestEachSeverityHasANumber(t *testing.T) {
	all := []detectors.Severity{0}
	// Beyond the last one String says the last one's name again.
	for s := all[0] + 1; s.String() != all[len(all)-1].String(); s++ {
		all = append(all, s)
	}
	if len(all) < 3 || all[0] != detectors.Informational || !slices.Contains(all, detectors.High) {
		t.Fatalf("severities are %v", all)
	}
	for _, s := range all {
		if _, ok := ocsfSeverities[s.String()]; !ok {
			t.Errorf("OCSF has no number of %v here", s)
		}
		if _, ok := priorities[s.String()]; !ok {
			t.Errorf("syslog has no number of %v here", s)
		}
	}
}

func TestIDs(t *testing.T) {
	f := detectors.Finding{Time: time.Unix(1, 2), Message: "m", Process: &detectors.Process{PID: 1}}
	id, err := ID(&f)
	if err != nil || len(id) != 32 {
		t.Fatalf("%q, %v", id, err)
	}
	b, _ := Encode(&f)
	o, _ := EncodeOCSF(&f, "")
	if !strings.HasPrefix(string(b), `{"id":"`+id) || !strings.Contains(string(o), `"finding_info":{"uid":"`+id) {
		t.Errorf("%s has not its id: %s %s", id, b, o)
	}
	g := f
	g.Time = g.Time.Add(1)
	if other, _ := ID(&g); other == id {
		t.Error("two findings have one id")
	}
}

func FuzzEncodeOCSF(f *testing.F) {
	f.Add("comm\x1b\u009b\U0001f600", "message", uint64(1))
	f.Fuzz(func(t *testing.T, comm, message string, value uint64) {
		b, err := EncodeOCSF(&detectors.Finding{Time: time.UnixMilli(1.7e12), Process: &detectors.Process{PID: 1, Comm: comm}, Message: message, Domain: comm, Facts: []detectors.Fact{{Name: comm, Value: value}}}, message)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if bad := validate("finding", "detection_finding", v); len(bad) > 0 {
			t.Fatalf("%q: %v", b, bad)
		}
	})
}
