package guests

import (
	"context"
	"embed"
	"fmt"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed creds
var credsSources embed.FS

// CredsModule builds the module that makes whoever writes to its device root, as an exploit
// would, for a guest's Linux ("6.12"): /payload/creds.ko there.
func CredsModule(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	files := map[string][]byte{}
	for _, name := range []string{"Kbuild", "creds.c"} {
		content, err := credsSources.ReadFile("creds/" + name)
		if err != nil {
			return lab.File{}, fmt.Errorf("test/guests: %w", err)
		}
		files[name] = content
	}
	ko, err := lab.BuildModule(ctx, linux, "creds", files, say)
	return lab.File{Name: "creds.ko", Source: ko, Guest: true}, err
}
