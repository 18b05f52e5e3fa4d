package binder

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// imagePrefix begins a location in a user program or library.
const imagePrefix = "image:"

// Bounds of a path, in bytes, and of an offset in a file.
const (
	maxImagePath   = 4096
	maxImageOffset = 1 << 40
)

// parseImage reads what follows image: a path, and a symbol or an offset.
func parseImage(text string) (Location, error) {
	fail := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("no place in a program: %q (%s); it is written like image:/bin/sh!main, image:/bin/sh!main+0x10, image:libc.so.6!malloc, image:/bin/sh!main.c:123 (a line) or image:/bin/sh+0x1234 (an offset in the file)", text, why)
	}
	l := Location{Image: text}
	if i := strings.LastIndexByte(text, '!'); i >= 0 { // a path may have one
		l.Image, l.Symbol = text[:i], text[i+1:]
		rest, offset, ok := cutLast(l.Symbol, '+')
		if file, line, isLine := parseLine(l.Symbol); isLine {
			l.File, l.Line, l.Symbol, ok = file, line, "", false
		}
		if ok {
			v, err := strconv.ParseUint(offset, 0, 64)
			if err != nil || v > maxOffset {
				return fail("no offset in a function")
			}
			l.Symbol, l.Offset = rest, v
		}
		if !isUserName(l.Symbol + l.File) {
			return fail("no symbol's name")
		}
	} else {
		rest, offset, ok := cutLast(text, '+')
		if !ok {
			return fail("neither a symbol nor an offset")
		}
		v, err := strconv.ParseUint(offset, 0, 64)
		if err != nil || v >= maxImageOffset {
			return fail("no offset in a file")
		}
		l.Image, l.Offset = rest, v
	}
	if !isPath(l.Image) {
		return fail("no path from the guest's root on, and no file's name")
	}
	return l, nil
}

// maxLine bounds the number of a line.
const maxLine = 1 << 24

// parseLine reads file.c:123.
func parseLine(text string) (file string, line int, ok bool) {
	file, number, _ := cutLast(text, ':')
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 0 || n > maxLine || !strings.Contains(file, ".") || strings.HasSuffix(file, ":") {
		return "", 0, false
	}
	return file, int(n), true
}

func cutLast(s string, at byte) (before, after string, found bool) {
	i := strings.LastIndexByte(s, at)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// isUserName says whether s can be a symbol of a program: those of Go, Rust and C++
// have more than letters in them.
func isUserName(s string) bool {
	return s != "" && len(s) <= 512 && isPrintable(s) && !strings.ContainsAny(s, "! ")
}

// isPath says whether s is a whole path, or a file's name alone.
func isPath(s string) bool {
	name := s[strings.LastIndexByte(s, '/')+1:]
	return name != "" && len(s) <= maxImagePath && isPrintable(s) && (s[0] == '/' || !strings.Contains(s, "/"))
}

// isPrintable keeps what a terminal would obey out of names.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) })
}
