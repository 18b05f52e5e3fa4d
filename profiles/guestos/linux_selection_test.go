package guestos

import (
	"strings"
	"testing"
)

func TestSelection(t *testing.T) {
	for words, want := range map[string]string{
		"openat,execve": "openat execve", "all": "openat execve read write", "!read": "openat execve write", "all,!read,!write": "openat execve", "!read, !write": "openat execve", "openat,!openat": "",
	} {
		s, err := ParseSelection(strings.Split(words, ","))
		var got []string
		for _, name := range []string{"openat", "execve", "read", "write"} {
			if s.picks(name) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s: %q, %v", words, got, err)
		}
	}
	for _, bad := range []string{"", "openat,", "!", "!all"} {
		if _, err := ParseSelection(strings.Split(bad, ",")); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
