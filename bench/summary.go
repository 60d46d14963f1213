package bench

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// headline says which line of the summary a figure belongs to. The line shows
// one of its figures, and how many of all have met their target.
type headline struct {
	line  line
	label string // of the line, if it shows this figure
	rank  int    // the line shows the figure with the least
}

// line is a line of the summary, each the answer to a question; lines come in
// this order.
type line int

const (
	lineTripGo line = iota
	lineTripHandler
	lineTripBooted
	lineOneOut // throughput of one stream from a guest end in Go
	lineOneIn  // to it
	lineManyOut
	lineManyIn
	lineBulkBooted
	lineSystemCalls
	lineSignals
	lineLost
	lineAllocations
	lineConnectionsGo
	lineConnectionsBooted
	lineMemory
	lineIdle
	lineFairness
	lineBoot
	lineBootFlat
)

// heads puts the figure on a line of the summary.
func (f Figure) heads(l line, rank int, label string) Figure {
	f.headline = &headline{line: l, label: label, rank: rank}
	return f
}

// summaryLine is what the summary says about one question, as text.
type summaryLine struct {
	Label   string
	Ours    string // with its unit
	Plain   string // the neighbour, in the same unit
	Ratio   string
	Target  string // of the ratio if it ends with ×
	Verdict string
	All     string // targets met of all that belong to the question
}

// summary returns the lines of all questions that were measured. A loaded
// machine has no verdicts.
func (r *Report) summary() []summaryLine {
	figures := map[line][]Figure{}
	for _, f := range r.Figures {
		if f.headline != nil {
			figures[f.headline.line] = append(figures[f.headline.line], f)
		}
	}
	var out []summaryLine
	for _, l := range slices.Sorted(maps.Keys(figures)) {
		best := slices.MinFunc(figures[l], func(a, b Figure) int {
			return cmp.Compare(a.headline.rank, b.headline.rank)
		})
		s := best.summaryLine()
		if met, targets := score(figures[l]); targets > 0 {
			s.All = fmt.Sprintf("%d/%d", met, targets)
		}
		if r.Machine.loaded() {
			s.Verdict, s.All = "", ""
		}
		out = append(out, s)
	}
	return out
}

// summaryHead has the names of the columns. A loaded machine's has none for
// what it has no verdict on.
func (r *Report) summaryHead() summaryLine {
	head := summaryLine{Ours: "ours", Plain: "plain", Ratio: "ratio", Target: "target"}
	if !r.Machine.loaded() {
		head.All = "all"
	}
	return head
}

func (f *Figure) summaryLine() summaryLine {
	unit := strings.Replace(f.Unit, "% of a core", "% CPU", 1)
	ours := strings.TrimSpace(number(f.Ours.Median) + " " + unit)
	s := summaryLine{Label: f.headline.label, Ours: ours}
	if f.Neighbour != nil {
		s.Plain, s.Ratio = number(f.Neighbour.Value.Median), number(f.Ratio.Median)
	}
	if f.Target != nil {
		s.Target, s.Verdict = f.Target.Text, f.Target.verdict()
		if text, ok := strings.CutPrefix(s.Target, ofRatio); ok {
			s.Target = text + "×"
		}
	}
	return s
}

func (s summaryLine) cells() []string {
	return []string{s.Label, s.Ours, s.Plain, s.Ratio, s.Target, s.Verdict, s.All}
}

// WriteSummary writes what matters for each question that was measured, on one
// screen.
func (r *Report) WriteSummary(w io.Writer) error {
	var b strings.Builder
	for _, text := range r.summaryTop() {
		wrap(&b, text)
	}
	lines := r.summary()
	rows := [][]string{r.summaryHead().cells()}
	for _, l := range lines {
		rows = append(rows, l.cells())
	}
	writeColumns(&b, "lrrrllr", rows)
	r.writeLists(&b)
	wrap(&b, r.summaryEnd()+" -v prints every figure.")
	if key := summaryKey(lines); key != "" {
		wrap(&b, key)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}

// summaryKey explains the words in a summary's lines.
func summaryKey(lines []summaryLine) string {
	directed := regexp.MustCompile(" streams? (in|out)")
	has := func(f func(summaryLine) bool) bool { return slices.ContainsFunc(lines, f) }
	var words []string
	if has(func(l summaryLine) bool { return directed.MatchString(l.Label) }) {
		words = append(words, "out: to TCP, rings of 1 MiB")
	}
	if has(func(l summaryLine) bool { return strings.HasSuffix(l.Target, "×") }) {
		words = append(words, "×: of the ratio")
	}
	if has(func(l summaryLine) bool { return l.All != "" }) {
		words = append(words, "all: targets met of that kind")
	}
	return strings.Join(words, "; ")
}

// summaryTop says when and where the report was made.
func (r *Report) summaryTop() []string {
	m := r.Machine
	others := ""
	if m.Others != nil {
		others = fmt.Sprintf("; other work: %s of %d CPUs", number(*m.Others), m.CPUs)
	}
	return []string{
		r.made() + others,
		fmt.Sprintf("%s, %d CPUs, Linux %s", m.Processor, m.CPUs, m.Kernel),
		"KVM: " + m.KVM,
	}
}

// summaryEnd is the verdict on the whole run.
func (r *Report) summaryEnd() string {
	if r.Machine.loaded() {
		return "No verdict: the machine was busy with other work."
	}
	met, targets := score(r.Figures)
	return fmt.Sprintf("%d of %d targets met.", met, targets)
}

// writeLists writes what has failed or could not be measured.
func (r *Report) writeLists(b *strings.Builder) {
	for _, l := range r.lists() {
		for _, reason := range l.Reasons {
			wrap(b, fmt.Sprintf("%s: %s: %s", l.Title, strings.Join(l.Names[reason], "; "), reason))
		}
	}
}
