package guests

import (
	"context"
	"embed"
	"fmt"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed src/poke.c poke/poke.h
var pokeSources embed.FS

// PokeProgram builds the program that has the module poke write, and does more: /payload/poke
// in the guest.
func PokeProgram(ctx context.Context) (lab.File, error) {
	files := map[string][]byte{}
	for name, at := range map[string]string{"poke.c": "src/poke.c", "poke.h": "poke/poke.h"} {
		content, err := pokeSources.ReadFile(at)
		if err != nil {
			return lab.File{}, fmt.Errorf("test/guests: %w", err)
		}
		files[name] = content
	}
	program, err := lab.BuildProgram(ctx, "poke", files)
	return lab.File{Name: "poke", Source: program, Guest: true}, err
}
