package bench

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Change is what became of one figure between two reports.
type Change struct {
	Figure string
	Unit   string
	// What is compared: "ratio" where there is a neighbour, since what slows
	// the machine cancels out of it; otherwise "value".
	What string
	Old  Spread
	New  Spread
	// Percent is the change of the median, and Noise half of both spreads
	// together, both in percent of the old median. A change beyond the noise
	// has spreads that hardly overlap.
	Percent, Noise float64
	// Verdict is better, worse, changed, changed from 0, within the noise, new
	// or gone.
	Verdict string
}

// Noise is at least this much. Between runs a machine's speed changes, and so
// does how much a round moves; both happen to a neighbour as well, so a ratio
// needs less. What starts and ends a round is counted with it, so a count that
// differs by less than one in two MiB may come from there.
const (
	ratioNoise = 2   // percent
	valueNoise = 25  // percent
	countNoise = 0.5 // per MiB
)

// Compare returns a change for each figure of either report, in the order of
// the newer one. Figures that only the older one has come last.
func Compare(older, newer *Report) []Change {
	loaded := older.Machine.loaded() || newer.Machine.loaded()
	was := map[string]Figure{}
	for _, f := range older.Figures {
		was[f.key()] = f
	}
	var out []Change
	for _, f := range newer.Figures {
		o, ok := was[f.key()]
		if !ok {
			c := Change{Figure: f.key(), Unit: f.Unit, What: "value", Verdict: isNew}
			c.New = f.Ours
			out = append(out, c)
			continue
		}
		delete(was, f.key())
		c := compare(o, f)
		if loaded && (c.Verdict == better || c.Verdict == worse) {
			// What has changed may be the other work.
			c.Verdict = changed
		}
		out = append(out, c)
	}
	for _, f := range older.Figures {
		if _, left := was[f.key()]; left {
			c := Change{Figure: f.key(), Unit: f.Unit, What: "value", Verdict: isGone}
			c.Old = f.Ours
			out = append(out, c)
		}
	}
	return out
}

func compare(o, n Figure) Change {
	c := Change{Figure: n.key(), Unit: n.Unit, What: "value", Old: o.Ours, New: n.Ours}
	least := float64(valueNoise)
	if o.Ratio != nil && n.Ratio != nil {
		c.What, c.Unit, c.Old, c.New = "ratio", "", *o.Ratio, *n.Ratio
		least = ratioNoise
	}
	if n.Unit == countUnit && o.Ours.Median != 0 {
		least = max(least, 100*countNoise/math.Abs(o.Ours.Median))
	}
	if c.Old.Median == 0 {
		c.Verdict = within
		if c.New.Median != 0 {
			c.Verdict = fromZero
		}
		return c
	}
	percent := 100 / math.Abs(c.Old.Median)
	c.Percent = (c.New.Median - c.Old.Median) * percent
	c.Noise = max(least, (c.Old.Max-c.Old.Min+c.New.Max-c.New.Min)/2*percent)
	switch {
	case c.Percent <= c.Noise && c.Percent >= -c.Noise:
		c.Verdict = within
	case n.Neutral:
		c.Verdict = changed
	case c.Percent > 0 == n.Higher:
		c.Verdict = better
	default:
		c.Verdict = worse
	}
	return c
}

// The verdicts on a change.
const (
	within   = "within the noise"
	better   = "better"
	worse    = "worse"
	changed  = "changed"
	fromZero = "changed from 0"
	isNew    = "new"
	isGone   = "gone"
)

// WriteComparison writes all that changed beyond the noise, and how many
// figures did not. Figures are only gone if the newer run measured everything.
func WriteComparison(w io.Writer, older, newer *Report) error {
	fmt.Fprintf(w, "\nCompared with the run of %s\n", older.Started.Format(timeFormat))
	for _, text := range differences(older, newer) {
		fmt.Fprintf(w, "  %s\n", text)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	still := 0
	for _, c := range compareChosen(older, newer) {
		switch c.Verdict {
		case within:
			still++
		case isNew:
			fmt.Fprintf(t, "  new\t%s\t%s %s\t\t\n", c.Figure, number(c.New.Median), c.Unit)
		case isGone:
			fmt.Fprintf(t, "  gone\t%s\t%s %s\t\t\n", c.Figure, number(c.Old.Median), c.Unit)
		default:
			fmt.Fprintf(t, "  %s\t%s\t%s %s → %s %s\t%+.0f %%\tnoise ±%.0f %%\n",
				c.Verdict, c.Figure, c.What, number(c.Old.Median), number(c.New.Median), c.Unit,
				c.Percent, c.Noise)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write comparison: %w", err)
	}
	_, err := fmt.Fprintf(w, "  %d figures within the noise\n", still)
	return err
}

// differences are what differs between two runs besides their figures.
func differences(older, newer *Report) (out []string) {
	o, n := older.Machine, newer.Machine
	if o.Processor != n.Processor || o.Kernel != n.Kernel || o.KVM != n.KVM {
		out = append(out, fmt.Sprintf("That was another machine: %s, Linux %s, KVM: %s",
			o.Processor, o.Kernel, o.KVM))
	}
	if o.Procs != n.Procs || o.Images != n.Images {
		out = append(out, fmt.Sprintf("That was with GOMAXPROCS %d and guest images %s, now it is %d and %s",
			o.Procs, o.Images, n.Procs, n.Images))
	}
	for _, of := range []struct {
		run     string
		machine *Machine
	}{{"That run's", &o}, {"This run's", &n}} {
		if of.machine.loaded() {
			out = append(out, of.run+
				" machine was busy with other work: nothing is called better or worse")
		}
	}
	if older.Quick != newer.Quick {
		out = append(out, "One of the runs was quick, the other wasn't: "+
			"what starts and ends a round weighs more in a quick one")
	}
	return out
}

// compareChosen is [Compare] without figures that are gone because the newer
// run didn't measure them.
func compareChosen(older, newer *Report) []Change {
	all := Compare(older, newer)
	if newer.Only == "" && !newer.Interrupted {
		return all
	}
	return slices.DeleteFunc(all, func(c Change) bool { return c.Verdict == isGone })
}

// mostChanges is how many changes one screen shows.
const mostChanges = 18

// WriteChanges writes what changed most beyond the noise, on one screen, and
// how many figures changed in which way.
func WriteChanges(w io.Writer, older, newer *Report) error {
	count := map[string]int{}
	var beyond []Change
	for _, c := range compareChosen(older, newer) {
		count[c.Verdict]++
		switch c.Verdict {
		case better, worse, changed, fromZero:
			beyond = append(beyond, c)
		}
	}
	slices.SortStableFunc(beyond, func(a, b Change) int { return cmp.Compare(b.size(), a.size()) })
	var b strings.Builder
	fmt.Fprintf(&b, "\nCompared with the run of %s\n", older.Started.Format(timeFormat))
	for _, text := range differences(older, newer) {
		wrap(&b, text+".")
	}
	var rows [][]string
	for _, c := range beyond[:min(len(beyond), mostChanges)] {
		rows = append(rows, c.cells())
	}
	writeColumns(&b, "lrll", rows)
	wrap(&b, countText(count, len(beyond))+" -v prints every change.")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write changes: %w", err)
	}
	return nil
}

// countText says how many figures have which verdict. beyond is how many of
// them changed beyond the noise.
func countText(count map[string]int, beyond int) string {
	var parts []string
	for _, verdict := range []string{worse, better, changed, fromZero, isNew, isGone, within} {
		if n := count[verdict]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, verdict))
		}
	}
	text := fmt.Sprintf("Of all figures: %s.", strings.Join(parts, ", "))
	if beyond > mostChanges {
		text += fmt.Sprintf(" Above are the %d that changed most for their noise.", mostChanges)
	}
	return text
}

// size is the change as a multiple of the noise.
func (c Change) size() float64 {
	if c.Noise == 0 {
		return 0
	}
	return math.Abs(c.Percent) / c.Noise
}

// cells are the change's row on the screen: verdict, percent, both medians and
// name. Medians without a unit are mostly ratios.
func (c Change) cells() []string {
	percent := ""
	if c.Verdict != fromZero {
		percent = fmt.Sprintf("%+.0f %%", c.Percent)
	}
	values := fmt.Sprintf("%s → %s %s", number(c.Old.Median), number(c.New.Median), c.Unit)
	return []string{c.Verdict, percent, strings.TrimSpace(values), shortNames.Replace(c.Figure)}
}

// shortNames makes a figure's key short enough for a line on the screen.
var shortNames = strings.NewReplacer(
	"guest → TCP", "out", "TCP → guest", "in",
	", 1 stream: ", " ×1: ", ", 8 streams: ", " ×8: ", ", 64 streams: ", " ×64: ",
	"counted per MiB: ", "", "ring ", "",
	movingEnd, "moves", copyingEnd, "copies", bootedEnd, "booted", "guest end in Go", "Go end",
	" and a proxy's", " by proxy's", "processor time", "CPU time",
	"system calls of both ends that move bytes or ring doorbells", "calls that move",
	"system calls of both ends", "system calls", "signals: notifications and interrupts", "signals",
	"host memory per idle stream, rings and guest apart", "memory", "streams at once", "streams",
	" and an echo by two goroutines", " by echo of two",
	", in its interrupt handler", " in handler", "of them active", "active",
	"accept, a byte, close; ", "", "round trip of 64 bytes", "round trip",
	": 63 light streams beside one at full speed", "",
	", since the start of its process", "", " of guest memory", "",
)
