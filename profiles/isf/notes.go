package isf

import "encoding/hex"

// BuildID finds the GNU build id among ELF notes (NT_GNU_BUILD_ID, which is 3), and
// writes it in hexadecimal, as Meta has it. "" where there is none.
func BuildID(notes []byte) string {
	for b := notes; len(b) >= 12; {
		name, desc, kind := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
		start := 12 + (uint64(name)+3)&^3
		end := start + uint64(desc)
		if end > uint64(len(b)) {
			break
		}
		if kind == 3 && string(b[12:min(16, len(b))]) == "GNU\x00" {
			return hex.EncodeToString(b[start:end])
		}
		b = b[min((end+3)&^3, uint64(len(b))):]
	}
	return ""
}
