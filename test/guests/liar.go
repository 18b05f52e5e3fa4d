package guests

import (
	"context"
	"embed"
	"path"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed liar
var liarSources embed.FS

// LiarModule builds the module that lies about the kernel's lists, for a guest's Linux
// ("6.12"): /payload/liar.ko there.
func LiarModule(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	files := map[string][]byte{}
	for _, name := range []string{"liar/Kbuild", "liar/liar.c"} {
		content, err := liarSources.ReadFile(name)
		if err != nil {
			return lab.File{}, err
		}
		files[path.Base(name)] = content
	}
	ko, err := lab.BuildModule(ctx, linux, "liar", files, say)
	return lab.File{Name: "liar.ko", Source: ko, Guest: true}, err
}
