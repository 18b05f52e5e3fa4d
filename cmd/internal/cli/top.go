package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

func (a *app) top() *cobra.Command {
	var every time.Duration
	var once bool
	cmd := &cobra.Command{
		Use: "top", Short: "Show what hprobed is busy with, live", Args: exactly(),
		Long: `top shows the guests that hprobed watches, and the probes in them, those first that were
hit most often in the last second. BUSY is how much of a processor's time hprobed works on
a guest's events: for so long its vCPUs wait.

Keys: o another order (hits a second, all hits, guest), space stop and go on, q end.
Where it does not write to a terminal, or with --once, it prints one screen.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return fmt.Errorf("%w: --every: at least 100ms", errUsage)
			}
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				m := &topModel{ctx: cmd.Context(), client: c, every: every}
				if once || a.json || !a.terminal() {
					return a.topOnce(m)
				}
				last, err := tea.NewProgram(m, tea.WithContext(cmd.Context()), tea.WithOutput(a.out)).Run()
				if cmd.Context().Err() != nil {
					return nil
				}
				if err == nil {
					err = last.(*topModel).err
				}
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&every, "every", time.Second, "how often to look")
	cmd.Flags().BoolVar(&once, "once", false, "print one screen, of what happened between two looks, and end")
	return cmd
}

// topSample is what hprobed says at one time.
type topSample struct {
	at     time.Time
	status *controlapi.GetStatusResponse
	probes []*controlapi.Probe
}

// topOrders are what probes can be sorted by.
var topOrders = []string{"hits a second", "hits", "guest"}

// topModel is the state of the screen.
type topModel struct {
	ctx           context.Context
	client        *control.Client
	every         time.Duration
	width, height int
	order         int
	stopped       bool
	before, now   *topSample
	err           error // the last look failed
}

func (m *topModel) look() (*topSample, error) {
	status, err := m.client.GetStatus(m.ctx, &controlapi.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	all, err := m.client.ListProbes(m.ctx, &controlapi.ListProbesRequest{})
	if err != nil {
		return nil, err
	}
	return &topSample{time.Now(), status, all.GetProbes()}, nil
}

// tick is that it is time to look again; looked is what came of it.
type tick struct{}
type looked struct {
	sample *topSample
	err    error
}

func (m *topModel) lookCmd() tea.Msg {
	s, err := m.look()
	return looked{s, err}
}

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return m.lookCmd }

// Update implements tea.Model.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "ctrl+c", "esc":
			m.err = nil
			return m, tea.Quit
		case "o":
			m.order = (m.order + 1) % len(topOrders)
		case "space":
			m.stopped = !m.stopped
		}
	case tick:
		if m.stopped {
			return m, m.later()
		}
		return m, m.lookCmd
	case looked:
		if m.err = msg.err; m.err != nil {
			return m, tea.Quit
		}
		m.before, m.now = m.now, msg.sample
		return m, m.later()
	}
	return m, nil
}

func (m *topModel) later() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg { return tick{} })
}

// View implements tea.Model.
func (m *topModel) View() tea.View {
	v := tea.NewView(m.screen(true))
	v.AltScreen = true
	return v
}

// topOnce prints one screen.
func (a *app) topOnce(m *topModel) (err error) {
	if m.before, err = m.look(); err != nil {
		return err
	}
	select {
	case <-m.ctx.Done():
		return m.ctx.Err()
	case <-time.After(m.every):
	}
	if m.now, err = m.look(); err != nil {
		return err
	}
	if a.json {
		return a.message(m.now.status)
	}
	_, err = fmt.Fprintln(a.out, m.screen(false))
	return err
}

// screen is what there is to see, as it fits.
func (m *topModel) screen(live bool) string {
	if m.now == nil {
		return "asking hprobed…"
	}
	s := m.now.status
	head := fmt.Sprintf("hprobed %s  driver %s  %s  %s", s.GetVersion(), s.GetDriver(), count(len(s.GetSessions()), "watched guest"), count(s.GetFindings(), "finding"))
	if s.GetDropped() > 0 {
		head += fmt.Sprintf(" (%d lost)", s.GetDropped())
	}
	parts := []string{head, "", m.guests(live), "", m.probes(live)}
	if live {
		state := fmt.Sprintf("o order: %s   space stop   q end", topOrders[m.order])
		if m.stopped {
			state = "stopped: space goes on   q end"
		}
		parts = append(parts, "", state)
	}
	lines := strings.Split(strings.Join(parts, "\n"), "\n")
	if m.height > 0 && len(lines) > m.height { // the end says what was cut
		cut := len(lines) - m.height + 3
		lines = append(lines[:m.height-3], fmt.Sprintf("… %d more lines", cut), "", lines[len(lines)-1])
	}
	for i, l := range lines {
		if m.width > 0 {
			lines[i] = lipgloss.NewStyle().MaxWidth(m.width).Render(l)
		}
	}
	return strings.Join(lines, "\n")
}

// seconds are between the two looks; 0: there is only one.
func (m *topModel) seconds() float64 {
	if m.before == nil {
		return 0
	}
	return m.now.at.Sub(m.before.at).Seconds()
}

// rate is how much more of something there is a second.
func (m *topModel) rate(before, now uint64) float64 {
	if m.seconds() <= 0 || now < before {
		return 0
	}
	return float64(now-before) / m.seconds()
}

func (m *topModel) guests(live bool) string {
	old := map[uint32]*controlapi.Session{}
	if m.before != nil {
		for _, s := range m.before.status.GetSessions() {
			old[s.GetDomainId()] = s
		}
	}
	rows := [][]string{{"GUEST", "ID", "PROBES", "HIDDEN PAGES", "EVENTS/S", "BUSY"}}
	for _, s := range m.now.status.GetSessions() {
		events, busy := "", ""
		if o := old[s.GetDomainId()]; o != nil {
			events = fmt.Sprintf("%.0f", m.rate(total(o.GetEvents()), total(s.GetEvents())))
			if hz := s.GetTicksPerSecond(); hz > 0 {
				busy = fmt.Sprintf("%.1f %%", 100*m.rate(o.GetTicks(), s.GetTicks())/float64(hz))
			}
		}
		rows = append(rows, []string{guestText(s.GetDomain()), fmt.Sprint(s.GetDomainId()), fmt.Sprint(s.GetProbes()), fmt.Sprint(s.GetShadowPages()), events, busy})
	}
	if len(rows) == 1 {
		return "no guest is watched"
	}
	return columns(rows, live)
}

func total(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

func probeKey(p *controlapi.Probe) string {
	return p.GetDomain() + "\x00" + p.GetId() + "\x00" + p.GetAt()
}

func (m *topModel) probes(live bool) string {
	old := map[string]uint64{}
	if m.before != nil {
		for _, p := range m.before.probes {
			old[probeKey(p)] = p.GetHits()
		}
	}
	perSecond := func(p *controlapi.Probe) float64 {
		before, ok := old[probeKey(p)]
		if !ok {
			return 0
		}
		return m.rate(before, p.GetHits())
	}
	all := slices.Clone(m.now.probes)
	slices.SortStableFunc(all, func(a, b *controlapi.Probe) int {
		switch m.order {
		case 0:
			return cmp.Or(cmp.Compare(perSecond(b), perSecond(a)), cmp.Compare(b.GetHits(), a.GetHits()))
		case 1:
			return cmp.Compare(b.GetHits(), a.GetHits())
		}
		return cmp.Compare(a.GetDomain(), b.GetDomain())
	})
	rows := [][]string{{"HITS/S", "HITS", "STATE", "GUEST", "PROBE", "AT"}}
	for _, p := range all {
		rows = append(rows, []string{fmt.Sprintf("%.0f", perSecond(p)), fmt.Sprint(p.GetHits()), p.GetState(), guestText(p.GetDomain()), p.GetId(), p.GetAt()})
	}
	if len(rows) == 1 {
		return "no probe is there"
	}
	return columns(rows, live)
}

// columns are rows in columns, the head in bold on a terminal.
func columns(rows [][]string, live bool) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		for i := range r {
			r[i] = plain(r[i])
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush()
	text := strings.TrimRight(b.String(), "\n")
	head, rest, _ := strings.Cut(text, "\n")
	if live {
		head = lipgloss.NewStyle().Bold(true).Render(head)
	}
	return head + "\n" + rest
}
