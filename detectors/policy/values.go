package policy

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Any is one or several texts.
type Any []string

// Date is a day. The zero Date is none.
type Date struct{ time.Time }

// UnmarshalText reads 2027-12-31.
func (d *Date) UnmarshalText(text []byte) (err error) {
	if d.Time, err = time.Parse(time.DateOnly, string(text)); err != nil {
		return fmt.Errorf("%q is no day: write one like 2027-12-31", text)
	}
	return nil
}

// Duration is a time of a watchdog.
type Duration time.Duration

// Bounds of a watchdog's time.
const (
	minWithin = 100 * time.Millisecond
	maxWithin = 24 * time.Hour
)

// UnmarshalText reads 10s, 500ms, 1h30m.
func (d *Duration) UnmarshalText(text []byte) error {
	got, err := time.ParseDuration(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("%q is no time: write one with its unit, like 500ms, 10s, 5m or 1h30m", text)
	case got < minWithin || got > maxWithin:
		return fmt.Errorf("%v is too short or too long a time: from %v to %v is allowed", got, minWithin, maxWithin)
	}
	*d = Duration(got)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// Hex is bytes.
type Hex []byte

// UnmarshalText reads hexadecimal digits, with or without space between the bytes.
func (h *Hex) UnmarshalText(text []byte) error {
	digits := strings.Join(strings.Fields(string(text)), "")
	got, err := hex.DecodeString(digits)
	if err != nil || len(got) == 0 {
		return fmt.Errorf("%q are no bytes: write two hexadecimal digits for each, like '0f 1f 44 00 00'", text)
	}
	*h = got
	return nil
}

func (h Hex) String() string { return fmt.Sprintf("% x", []byte(h)) }
