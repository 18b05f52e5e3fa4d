// Command pages writes the manual pages of hprobe and hprobed into a folder. With
// SOURCE_DATE_EPOCH set they are the same for the same help texts.
package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/hprobe/hprobe/cmd/internal/cli"
	"github.com/hprobe/hprobe/cmd/internal/daemoncli"
	"github.com/hprobe/hprobe/cmd/internal/version"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./cmd/internal/pages FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pages:", err)
		os.Exit(1)
	}
}

func write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	hprobe := cli.Command()
	verbatim(hprobe)
	if err := doc.GenManTree(hprobe, header("1"), folder); err != nil {
		return err
	}
	var help, errs bytes.Buffer
	if status := daemoncli.Main([]string{"--help"}, &help, &errs); status != 0 {
		return fmt.Errorf("hprobed --help: status %d: %s", status, &errs)
	}
	hprobed := &cobra.Command{Use: "hprobed", Short: "Watch running Xen guests from dom0", Long: help.String(), Run: func(*cobra.Command, []string) {}}
	verbatim(hprobed)
	return doc.GenManTree(hprobed, header("8"), folder)
}

func header(section string) *doc.GenManHeader {
	return &doc.GenManHeader{Section: section, Source: "hprobe " + version.String(), Manual: "hprobe"}
}

// verbatim has help texts in a page as they are on a terminal: they are no Markdown.
func verbatim(c *cobra.Command) {
	c.DisableAutoGenTag = true
	if c.Long != "" {
		c.Long = "```\n" + c.Long + "\n```\n"
	}
	for _, sub := range c.Commands() {
		verbatim(sub)
	}
}
