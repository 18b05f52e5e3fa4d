package sinks

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/hprobe/hprobe/detectors"
)

// encoders make a line of a finding, in ASCII, with its end.
var encoders = map[string]func(f *detectors.Finding, version string) ([]byte, error){
	"json": func(f *detectors.Finding, _ string) ([]byte, error) { return Encode(f) },
	"ocsf": EncodeOCSF,
}

// ocsfVersion is the version of the schema, https://schema.ocsf.io/1.3.0/classes/detection_finding.
// Later ones of 1.x are supersets.
const ocsfVersion = "1.3.0"

// ocsfSeverities are OCSF's numbers of hprobe's severities, and its own names of them.
var ocsfSeverities = map[string]struct {
	id   int
	name string
}{"info": {1, "Informational"}, "low": {2, "Low"}, "medium": {3, "Medium"}, "high": {4, "High"}, "critical": {5, "Critical"}}

// The structs are OCSF's objects, with what hprobe has for them.
type (
	ocsfFinding struct {
		ActivityID    int            `json:"activity_id"`
		ActivityName  string         `json:"activity_name"`
		CategoryUID   int            `json:"category_uid"`
		CategoryName  string         `json:"category_name"`
		ClassUID      int            `json:"class_uid"`
		ClassName     string         `json:"class_name"`
		TypeUID       int            `json:"type_uid"`
		TypeName      string         `json:"type_name"`
		Time          int64          `json:"time"` // milliseconds
		SeverityID    int            `json:"severity_id"`
		Severity      string         `json:"severity"`
		StatusID      int            `json:"status_id"`
		Status        string         `json:"status"`
		ActionID      int            `json:"action_id"`
		Action        string         `json:"action"`
		DispositionID int            `json:"disposition_id"`
		Disposition   string         `json:"disposition"`
		Message       string         `json:"message"`
		Metadata      ocsfMetadata   `json:"metadata"`
		Info          ocsfInfo       `json:"finding_info"`
		Resources     []ocsfResource `json:"resources"`
		Evidences     []ocsfEvidence `json:"evidences,omitempty"`
		Unmapped      ocsfUnmapped   `json:"unmapped"`
	}
	ocsfMetadata struct {
		Version  string      `json:"version"`
		Profiles []string    `json:"profiles"`
		Product  ocsfProduct `json:"product"`
		UID      string      `json:"uid"`
		Labels   []string    `json:"labels,omitempty"`
	}
	ocsfProduct struct {
		Name       string `json:"name"`
		VendorName string `json:"vendor_name"`
		Version    string `json:"version,omitempty"`
	}
	ocsfInfo struct {
		UID         string       `json:"uid"`
		Title       string       `json:"title"`
		CreatedTime int64        `json:"created_time"` // milliseconds
		Analytic    ocsfAnalytic `json:"analytic"`
		Types       []string     `json:"types"`
	}
	ocsfAnalytic struct {
		Name   string `json:"name"`
		Type   string `json:"type"`
		TypeID int    `json:"type_id"`
	}
	ocsfResource struct {
		Type string `json:"type"`
		Name string `json:"name"`
		UID  string `json:"uid"`
	}
	ocsfEvidence struct {
		Process ocsfProcess `json:"process"`
	}
	ocsfProcess struct {
		PID  uint32    `json:"pid"`
		TID  uint32    `json:"tid,omitempty"`
		Name string    `json:"name,omitempty"`
		User *ocsfUser `json:"user,omitempty"`
	}
	ocsfUser struct {
		UID string `json:"uid"`
	}
	ocsfUnmapped struct {
		Probe string            `json:"probe"`
		VCPU  uint32            `json:"vcpu"`
		Facts map[string]string `json:"facts,omitempty"`
	}
)

// EncodeOCSF makes a line of JSON of a finding as OCSF's Detection Finding (class 2004), in
// ASCII, with its line end. version is hprobe's. What OCSF has no place for is in unmapped.
func EncodeOCSF(f *detectors.Finding, version string) ([]byte, error) {
	id, err := ID(f)
	if err != nil {
		return nil, err
	}
	severity, ok := ocsfSeverities[f.Severity.String()]
	if !ok {
		severity.id, severity.name = 99, f.Severity.String()
	}
	o := ocsfFinding{
		ActivityID: 1, ActivityName: "Create", CategoryUID: 2, CategoryName: "Findings", ClassUID: 2004, ClassName: "Detection Finding",
		TypeUID: 200401, TypeName: "Detection Finding: Create", Time: f.Time.UnixMilli(), SeverityID: severity.id, Severity: severity.name, StatusID: 1, Status: "New",
		// 1.3 has no action for what was only observed: it was let through, and logged.
		ActionID: 1, Action: "Allowed", DispositionID: 17, Disposition: "Logged", Message: f.Message,
		Metadata:  ocsfMetadata{Version: ocsfVersion, Profiles: []string{"security_control"}, Product: ocsfProduct{Name: "hprobe", VendorName: "hprobe", Version: version}, UID: id, Labels: f.Tags},
		Info:      ocsfInfo{UID: id, Title: f.Message, CreatedTime: f.Time.UnixMilli(), Analytic: ocsfAnalytic{Name: f.Detector, Type: "Rule", TypeID: 1}, Types: []string{f.Detector}},
		Resources: []ocsfResource{{Type: "Xen domain", Name: f.Domain, UID: strconv.Itoa(int(f.DomainID))}},
		Unmapped:  ocsfUnmapped{Probe: f.Probe, VCPU: uint32(f.VCPU), Facts: factsOf(f)},
	}
	if f.Blocked {
		o.ActionID, o.Action, o.DispositionID, o.Disposition = 2, "Denied", 2, "Blocked"
	}
	if p := f.Process; p != nil {
		process := ocsfProcess{PID: p.PID, TID: p.TID, Name: p.Comm}
		if p.UID != nil {
			process.User = &ocsfUser{UID: strconv.FormatUint(uint64(*p.UID), 10)}
		}
		o.Evidences = []ocsfEvidence{{process}}
	}
	b, err := json.Marshal(&o)
	if err != nil {
		return nil, fmt.Errorf("encode a finding: %w", err)
	}
	return append(ASCII(b), '\n'), nil
}
