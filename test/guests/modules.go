package guests

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed module creds liar poke
var modules embed.FS

// module builds the module of a folder for a guest's Linux ("6.12"): /payload/NAME.ko there.
func module(ctx context.Context, folder, name, linux string, say func(string)) (lab.File, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(modules, folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[d.Name()], err = modules.ReadFile(path)
		return err
	})
	if err != nil {
		return lab.File{}, fmt.Errorf("test/guests: %w", err)
	}
	ko, err := lab.BuildModule(ctx, linux, name, files, say)
	return lab.File{Name: name + ".ko", Source: ko, Guest: true}, err
}

// Module builds the module with the planted bug, vuln.
func Module(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	return module(ctx, "module", "vuln", linux, say)
}

// CredsModule builds the module that makes whoever writes to its device root, as an exploit
// would: creds.
func CredsModule(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	return module(ctx, "creds", "creds", linux, say)
}

// LiarModule builds the module that lies about the kernel's lists: liar.
func LiarModule(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	return module(ctx, "liar", "liar", linux, say)
}

// PokeModule builds the module that writes registers and memory: poke.
func PokeModule(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	return module(ctx, "poke", "poke", linux, say)
}
