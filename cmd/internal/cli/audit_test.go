package cli

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/cmd/internal/audit"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

func TestAuditVerify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	l, err := audit.Open(rotate.Config{Path: path}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 4 {
		if i == 2 { // somebody moves it away
			if err := os.Rename(path, path+".20260102T030405.000000000Z"); err != nil {
				t.Fatal(err)
			}
			if err := l.Reopen(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Write(audit.Entry{Command: "AddProbe"}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := audit.Files(path)
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	run := func(args ...string) (status int, out string) {
		var b bytes.Buffer
		status = Main(append([]string{"audit", "verify"}, args...), &b, &b)
		return status, b.String()
	}
	head := l.Head().String()
	for _, w := range []struct {
		status int
		want   string
		args   []string
	}{
		{0, "4 lines, entries 1 to 4: each follows from the one before\nthe last one is " + head, []string{files[1], files[0]}},
		{0, "2 lines, entries 3 to 4", []string{files[1]}},
		{0, `"entries":4,"first":1,"last":4,"torn":0,"hash":"` + l.Head().Hash, []string{"-o", "json", files[0], files[1]}},
		{0, "4 lines", []string{"--entry", head, files[0], files[1]}},
		{1, "entries were cut off", []string{"--entry", head, files[0]}},
		{2, "write NUMBER:HASH", []string{"--entry", "7", files[0]}},
		{1, "no such file", []string{path + "x"}},
		{1, "is entry 1, and the one before is 2", []string{files[0], files[0]}},
		{0, "the log is empty", []string{os.DevNull}},
	} {
		if status, out := run(w.args...); status != w.status || !strings.Contains(out, w.want) {
			t.Errorf("%v: %d, %s", w.args, status, out)
		}
	}
	b, err := os.ReadFile(files[1])
	if err == nil {
		err = os.WriteFile(files[1], bytes.Replace(b, []byte("AddProbe"), []byte("Nothing!"), 1), 0o640)
	}
	if err != nil {
		t.Fatal(err)
	}
	if status, out := run(files...); status != 1 || !strings.Contains(out, files[1]+": line 2: it follows from another entry 3") {
		t.Errorf("%d, %s", status, out)
	}
}
