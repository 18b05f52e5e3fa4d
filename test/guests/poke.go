package guests

import (
	"context"
	"embed"
	"fmt"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed poke src/poke.c
var pokeSources embed.FS

// Poke builds the module that writes registers and memory, for a guest's Linux
// ("6.12"), and its program: /payload/poke.ko and /payload/poke there.
func Poke(ctx context.Context, linux string, say func(string)) ([]lab.File, error) {
	files := map[string][]byte{}
	for _, name := range []string{"poke/Kbuild", "poke/poke.c", "poke/poke.h", "src/poke.c"} {
		content, err := pokeSources.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("test/guests: %w", err)
		}
		files[name] = content
	}
	module, err := lab.BuildModule(ctx, linux, "poke", map[string][]byte{"Kbuild": files["poke/Kbuild"], "poke.c": files["poke/poke.c"], "poke.h": files["poke/poke.h"]}, say)
	if err != nil {
		return nil, err
	}
	program, err := lab.BuildProgram(ctx, "poke", map[string][]byte{"poke.c": files["src/poke.c"], "poke.h": files["poke/poke.h"]})
	return []lab.File{{Name: "poke.ko", Source: module, Guest: true}, {Name: "poke", Source: program, Guest: true}}, err
}
