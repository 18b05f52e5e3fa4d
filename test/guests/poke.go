package guests

import (
	"context"
	"embed"
	"fmt"
	"path"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed poke src/poke.c
var pokeSources embed.FS

// PokeModule builds the module that writes registers and memory, for a guest's Linux
// ("6.12"): /payload/poke.ko there.
func PokeModule(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	files, err := pokeFiles("poke/Kbuild", "poke/poke.c", "poke/poke.h")
	if err != nil {
		return lab.File{}, err
	}
	ko, err := lab.BuildModule(ctx, linux, "poke", files, say)
	return lab.File{Name: "poke.ko", Source: ko, Guest: true}, err
}

// PokeProgram builds the program that has it do so, and more: /payload/poke there.
func PokeProgram(ctx context.Context) (lab.File, error) {
	files, err := pokeFiles("src/poke.c", "poke/poke.h")
	if err != nil {
		return lab.File{}, err
	}
	program, err := lab.BuildProgram(ctx, "poke", files)
	return lab.File{Name: "poke", Source: program, Guest: true}, err
}

// pokeFiles are sources by their names without folder.
func pokeFiles(names ...string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range names {
		content, err := pokeSources.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("test/guests: %w", err)
		}
		files[path.Base(name)] = content
	}
	return files, nil
}
