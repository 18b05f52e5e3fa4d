package forms

import (
	_ "embed"
	"strings"
)

//go:embed emulator.txt
var emulatorTable string

// EmulatorWrong returns what the emulator of a Xen version ("4.20"; "": of any)
// was seen to get wrong: by a form's Key, the first thing that differs.
func EmulatorWrong(xen string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(emulatorTable) {
		versions, rest, ok := strings.Cut(strings.TrimSpace(line), "\t")
		what, key, ok2 := strings.Cut(rest, "\t")
		if ok && ok2 && (xen == "" || strings.Contains(" "+versions+" ", " "+xen+" ")) {
			all[key] = what
		}
	}
	return all
}
