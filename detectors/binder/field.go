package binder

import (
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// fieldsOf finds where members are in their structs: see detectors.ProbeSpec.Fields.
func fieldsOf(p *isf.Profile, fields []string) ([]uint64, error) {
	offsets := make([]uint64, len(fields))
	for i, text := range fields {
		of, paths, ok := strings.Cut(text, ".")
		if !ok {
			return nil, fmt.Errorf("no field: %q; it is written like struct.member, or struct.member|member", text)
		}
		var at isf.Location
		var err error
		for _, path := range strings.Split(paths, "|") {
			if at, err = p.Field(of, path); err == nil {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		offsets[i] = at.Offset
	}
	return offsets, nil
}
