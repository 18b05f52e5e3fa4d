package cli

import (
	"os"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/term"
)

// palette colours what is shown on a terminal; the zero palette leaves all as it is.
type palette struct{ on bool }

// palette is on where a terminal reads what is printed, and NO_COLOR is not set
// (no-color.org).
func (a *app) palette() palette {
	return palette{a.terminal() && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// terminal says whether what is printed goes to a terminal.
func (a *app) terminal() bool {
	f, ok := a.out.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

// The styles: of what is beside the point, of names, and of what somebody should look at.
var (
	faint = lipgloss.NewStyle().Faint(true)
	names = lipgloss.NewStyle().Foreground(lipgloss.Cyan)
	warn  = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
	alarm = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
	good  = lipgloss.NewStyle().Foreground(lipgloss.Green)
)

func (p palette) paint(style lipgloss.Style, text string) string {
	if !p.on || text == "" {
		return text
	}
	return style.Render(text)
}
