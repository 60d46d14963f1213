package bench

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/fix-project/arcavm/internal/regular"
)

// Report is what one run measured, and where.
type Report struct {
	Machine Machine   `json:"machine"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Rounds  int       `json:"rounds"`
	Quick   bool      `json:"quick"`
	Only    string    `json:"only,omitempty"` // what was chosen; "": everything
	// Interrupted is set where the run ended before all was measured.
	Interrupted bool      `json:"interrupted,omitempty"`
	Counted     string    `json:"counted"` // which system calls were; "": none
	Figures     []Figure  `json:"figures"`
	Missing     []Missing `json:"missing,omitempty"`
	Failed      []Missing `json:"failed,omitempty"`
}

// Figure is one thing measured.
type Figure struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	Unit   string `json:"unit"`
	Higher bool   `json:"higher_is_better"`
	// Neutral is a figure of which neither more nor less is better.
	Neutral bool   `json:"neutral,omitempty"`
	Ours    Spread `json:"ours"`
	// Neighbour was measured in turn with Ours. Ratio is Ours by it, round by
	// round. nil: there is no neighbour.
	Neighbour *Neighbour `json:"neighbour,omitempty"`
	Ratio     *Spread    `json:"ratio,omitempty"`
	Target    *Target    `json:"target,omitempty"`
	// Point is the figure's place in the plots over ring size and streams.
	// nil: it is in none.
	Point *Point `json:"point,omitempty"`
	// headline is the figure's place in the summary. nil: it has none, as in a
	// report that was read from a file.
	headline *headline
}

// Point is what a throughput was measured with.
type Point struct {
	Way     string `json:"way"`
	Series  string `json:"series"` // the guest's end
	Ring    int    `json:"ring"`   // bytes
	Streams int    `json:"streams"`
}

// Neighbour is what a figure is compared with.
type Neighbour struct {
	Name  string `json:"name"`
	Value Spread `json:"value"`
}

// Target is what a figure should reach, and whether it did in this run.
type Target struct {
	Text string `json:"text"`
	Met  bool   `json:"met"`
}

// Missing is something that couldn't be measured on this machine, or failed.
type Missing struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// key is unique in a report, and the same in every report.
func (f *Figure) key() string { return f.Group + ": " + f.Name }

// newFigure returns a figure of one value for each round.
func newFigure(group, name, unit string, values []float64) Figure {
	return Figure{Group: group, Name: name, Unit: unit, Ours: spreadOf(values)}
}

// beside adds the neighbour: its values, of the same rounds as ours.
func (f Figure) beside(name string, ours, theirs []float64) Figure {
	ratio := spreadOf(ratios(ours, theirs))
	f.Neighbour, f.Ratio = &Neighbour{Name: name, Value: spreadOf(theirs)}, &ratio
	return f
}

// ofRatio begins the text of a target that is about the ratio.
const ofRatio = "ratio "

func (f Figure) wantRatioAtLeast(limit float64) Figure {
	f.Target = &Target{Text: fmt.Sprintf(ofRatio+"≥ %g", limit), Met: f.Ratio.Median >= limit}
	return f
}

func (f Figure) wantRatioAtMost(limit float64) Figure {
	f.Target = &Target{Text: fmt.Sprintf(ofRatio+"≤ %g", limit), Met: f.Ratio.Median <= limit}
	return f
}

func (f Figure) wantBelow(limit float64) Figure {
	f.Target = &Target{Text: fmt.Sprintf("< %s", number(limit)), Met: f.Ours.Median < limit}
	return f
}

func (f Figure) wantAtMost(limit float64) Figure {
	f.Target = &Target{Text: fmt.Sprintf("≤ %s", number(limit)), Met: f.Ours.Median <= limit}
	return f
}

func (t *Target) verdict() string {
	if t.Met {
		return "met"
	}
	return "not met"
}

// WriteJSON writes the report for [ReadJSON].
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// ErrNoReport is what ReadJSON's error wraps if the file isn't a report.
var ErrNoReport = errors.New("is not a report of arcavm bench")

// ReadJSON reads what WriteJSON has written to a file.
func ReadJSON(path string) (*Report, error) {
	b, err := readRegular(path)
	if err != nil {
		return nil, err // it names the path
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s %w: %w", path, ErrNoReport, err)
	}
	if hasControl(b) {
		return nil, fmt.Errorf("%s %w: a text in it has control characters", path, ErrNoReport)
	}
	if r.Started.IsZero() || r.Rounds < 1 {
		return nil, fmt.Errorf("%s %w", path, ErrNoReport)
	}
	return &r, nil
}

// hasControl reports whether a string of a JSON text has control characters but
// for tabs and ends of lines, which errors have: the others would act on the
// terminal that it is written to.
func hasControl(text []byte) bool {
	d := json.NewDecoder(bytes.NewReader(text))
	for {
		token, err := d.Token()
		if err != nil {
			return err != io.EOF
		}
		if s, ok := token.(string); ok && strings.ContainsFunc(s, isControl) {
			return true
		}
	}
}

func isControl(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }

// readRegular reads a regular file. Anything else is refused before it could
// block, as a FIFO without a writer does.
func readRegular(path string) ([]byte, error) {
	f, info, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %w: not a regular file", path, ErrNoReport)
	}
	return io.ReadAll(f)
}

// WriteText writes every figure for people: a table for each group.
func (r *Report) WriteText(w io.Writer) error {
	for _, line := range r.head() {
		fmt.Fprintln(w, line)
	}
	for _, g := range r.groups() {
		fmt.Fprintf(w, "\n%s\n", g.name)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  \tours\tmin–max\tunit\tbeside it\t\tratio\tmin–max\ttarget\t")
		for _, f := range g.figures {
			fmt.Fprint(t, "  ")
			for _, cell := range f.cells() {
				fmt.Fprintf(t, "%s\t", cell)
			}
			fmt.Fprintln(t)
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	for _, list := range r.lists() {
		fmt.Fprintf(w, "\n%s\n", list.Title)
		for _, reason := range list.Reasons {
			fmt.Fprintf(w, "  %s: %s\n", strings.Join(list.Names[reason], "; "), reason)
		}
	}
	met, targets := score(r.Figures)
	_, err := fmt.Fprintf(w, "\n%d of %d targets met in this run\n", met, targets)
	return err
}

// list is what there are no figures of, by the reason.
type list struct {
	Title   string
	Reasons []string
	Names   map[string][]string
}

func (r *Report) lists() (out []list) {
	for _, of := range []struct {
		title string
		items []Missing
	}{{"Failed", r.Failed}, {"Not measured", r.Missing}} {
		if len(of.items) == 0 {
			continue
		}
		l := list{Title: of.title, Names: map[string][]string{}}
		for _, m := range of.items {
			if l.Names[m.Reason] == nil {
				l.Reasons = append(l.Reasons, m.Reason)
			}
			l.Names[m.Reason] = append(l.Names[m.Reason], m.Name)
		}
		out = append(out, l)
	}
	return out
}

// timeFormat is for times that are in UTC.
const timeFormat = "2006-01-02 15:04 UTC"

// made says when and how the report was made.
func (r *Report) made() string {
	run := fmt.Sprintf("%s, rounds: %d, %.0f s", r.Started.Format(timeFormat), r.Rounds, r.Seconds)
	if r.Quick {
		run += ", quick"
	}
	if r.Interrupted {
		run += ", interrupted"
	}
	return run
}

func (r *Report) head() []string {
	m := r.Machine
	load := "load when it began: " + m.Load
	if m.Others != nil {
		load += fmt.Sprintf("; other work while it ran: %s of %d CPUs", number(*m.Others), m.CPUs)
	}
	if m.loaded() {
		load += ", so take no figure here for this machine's"
	}
	return []string{
		"arcavm bench: " + r.made(),
		fmt.Sprintf("%s, %d CPUs, Linux %s", m.Processor, m.CPUs, m.Kernel),
		fmt.Sprintf("KVM: %s; lane: %s", m.KVM, m.Lane),
		fmt.Sprintf("arcavm %s, GOMAXPROCS %d, guest images %s", m.Version, m.Procs, m.Images),
		fmt.Sprintf("system calls counted: %s", cmp.Or(r.Counted, "none")),
		load,
	}
}

type group struct {
	name    string
	figures []Figure
}

// groups returns the figures by group, in the order of their first figures.
func (r *Report) groups() []group {
	var out []group
	at := map[string]int{}
	for _, f := range r.Figures {
		i, ok := at[f.Group]
		if !ok {
			i = len(out)
			at[f.Group] = i
			out = append(out, group{name: f.Group})
		}
		out[i].figures = append(out[i].figures, f)
	}
	return out
}

// score counts the figures' targets, and how many were met.
func score(figures []Figure) (met, targets int) {
	for _, f := range figures {
		if f.Target != nil {
			targets++
			if f.Target.Met {
				met++
			}
		}
	}
	return met, targets
}

// cells are a figure's row: name, ours, least and most, unit, neighbour, its
// value, ratio, least and most, target.
func (f *Figure) cells() []string {
	row := []string{f.Name, number(f.Ours.Median), f.Ours.span(), f.Unit, "", "", "", "", ""}
	if f.Neighbour != nil {
		row[4], row[5] = f.Neighbour.Name, number(f.Neighbour.Value.Median)
		row[6], row[7] = number(f.Ratio.Median), f.Ratio.span()
	}
	if f.Target != nil {
		row[8] = f.Target.Text + ": " + f.Target.verdict()
	}
	return row
}

func (s Spread) span() string { return number(s.Min) + "–" + number(s.Max) }

// number shows three digits, and never fewer than are before the point.
func number(v float64) string {
	size := math.Abs(v)
	switch {
	case size == 0:
		return "0"
	case size >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case size >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case size >= 0.01:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}
