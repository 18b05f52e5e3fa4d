package isf

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxSymbolText bounds what an ISF file says of one symbol, in bytes.
const maxSymbolText = 8 << 10

// FindBanner finds linux_banner in an ISF file that r reads, packed or not, without
// decoding the rest, of which there may be 60 MB. "" says that it has none, as files of
// other systems. It is for choosing among files: what the file is, Read finds out.
func FindBanner(r io.Reader) (string, error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	plain, err := unpacked(in, head)
	if err != nil {
		return "", fmt.Errorf("unpack: %w", err)
	}
	key := []byte(`"` + bannerSymbol + `"`)
	left := int64(MaxSize)
	window := make([]byte, 0, 256<<10)
	for ended := false; ; {
		for len(window) < cap(window) && !ended {
			n, err := plain.Read(window[len(window):cap(window)])
			window = window[:len(window)+n]
			if left -= int64(n); left < 0 {
				return "", fmt.Errorf("unpack: more than %d bytes", MaxSize)
			}
			if ended = errors.Is(err, io.EOF); err != nil && !ended {
				return "", fmt.Errorf("unpack: %w", err)
			}
		}
		for rest := window; ; {
			at := bytes.Index(rest, key)
			if at < 0 {
				break
			}
			rest = rest[at+len(key):]
			if banner := bannerAfter(rest); banner != "" {
				return banner, nil
			}
		}
		if ended {
			return "", nil
		}
		// What is said of it may go on in what comes next.
		window = window[:copy(window, window[len(window)-maxSymbolText:])]
	}
}

// bannerAfter decodes what comes after the name of the symbol; "" where it is none.
func bannerAfter(b []byte) string {
	b, ok := bytes.CutPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte(":"))
	if !ok {
		return ""
	}
	var s struct {
		Data string `json:"constant_data"`
	}
	if json.NewDecoder(bytes.NewReader(b[:min(len(b), maxSymbolText)])).Decode(&s) != nil {
		return ""
	}
	text, err := base64.StdEncoding.DecodeString(s.Data)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(text), "\n\x00")
}
