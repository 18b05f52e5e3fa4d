package debuginfo

import (
	"debug/dwarf"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
)

// Lines is what a file's tables say of a line.
type Lines struct {
	// Places are where code of it begins, in order: a line may be in several functions,
	// copies of one, and parts of a loop.
	Places []uint64
	// Files are the source files that were meant: more than one, and a longer path has to
	// say which.
	Files []string
	// Next is the line behind it that has code; 0: none.
	Next int
}

// maxFiles bounds how many source files of one name are told of.
const maxFiles = 8

// Line finds a line's code. file is a path, or the end of one. isCode says whether an
// address is in the program.
func (i *Info) Line(file string, line int, isCode func(uint64) bool) (Lines, error) {
	var out Lines
	files, seen := map[string]bool{}, map[int64]bool{}
	for w := i.Walk(); ; {
		unit, err := w.Next()
		if err != nil {
			return out, err
		}
		if unit == nil {
			break
		}
		if err := w.Skip(unit); err != nil {
			return out, err
		}
		table, ok := number(unit, dwarf.AttrStmtList)
		if !isUnit(unit.Tag) || !ok || seen[table] {
			continue
		}
		seen[table] = true
		if err := i.table(unit, table, file, line, isCode, files, &out); err != nil {
			return out, err
		}
	}
	slices.Sort(out.Places)
	out.Places = slices.Compact(out.Places)
	out.Files = slices.Sorted(maps.Keys(files))
	return out, nil
}

// table looks through the one of a unit.
func (i *Info) table(unit *dwarf.Entry, at int64, file string, line int, isCode func(uint64) bool, files map[string]bool, out *Lines) error {
	folder, _ := unit.Val(dwarf.AttrCompDir).(string)
	if err := i.checkTable(at, folder); err != nil {
		return err
	}
	r, err := i.data.LineReader(unit)
	if err != nil || r == nil {
		return err
	}
	named := false
	for _, f := range r.Files() {
		named = named || f != nil && endsWith(f.Name, file)
	}
	if err := i.spend(len(r.Files())); err != nil || !named {
		return err
	}
	var row, last dwarf.LineEntry
	for {
		if err := r.Next(&row); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := i.spend(1); err != nil {
			return err
		}
		if !row.EndSequence && row.IsStmt && row.File != nil && row.Line >= line && endsWith(row.File.Name, file) && isCode(row.Address) {
			if len(files) < maxFiles {
				files[row.File.Name] = true
			}
			switch goesOn := !last.EndSequence && last.File == row.File && last.Line == row.Line; {
			case row.Line == line && !goesOn && len(out.Places) < maxCopies:
				out.Places = append(out.Places, row.Address)
			case row.Line > line && (out.Next == 0 || row.Line < out.Next):
				out.Next = row.Line
			}
		}
		last = row
	}
}

func endsWith(path, file string) bool {
	return path == file || strings.HasSuffix(path, file) && path[len(path)-len(file)-1] == '/'
}
