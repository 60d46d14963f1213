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

// change is what became of one figure between two reports.
type change struct {
	figure string
	unit   string
	// what is compared: "ratio" where there is a neighbour, since what slows
	// the machine cancels out of it; otherwise "value".
	what string
	old  Spread
	new  Spread
	// percent is the change of the median, and noise half of both spreads
	// together, both in percent of the old median. A change beyond the noise
	// has spreads that hardly overlap.
	percent, noise float64
	// verdict is better, worse, changed, changed from 0, within the noise, new
	// or gone.
	verdict string
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

// changes returns a change for each figure of either report, in the order of
// the newer one. Figures that only the older one has come last.
func changes(older, newer *Report) []change {
	loaded := older.Machine.loaded() || newer.Machine.loaded()
	was := map[string]Figure{}
	for _, f := range older.Figures {
		was[f.key()] = f
	}
	var out []change
	for _, f := range newer.Figures {
		o, ok := was[f.key()]
		if !ok {
			c := change{figure: f.key(), unit: f.Unit, what: "value", verdict: isNew}
			c.new = f.Ours
			out = append(out, c)
			continue
		}
		delete(was, f.key())
		c := compare(o, f)
		if loaded && (c.verdict == better || c.verdict == worse) {
			// What has changed may be the other work.
			c.verdict = changed
		}
		out = append(out, c)
	}
	for _, f := range older.Figures {
		if _, left := was[f.key()]; left {
			c := change{figure: f.key(), unit: f.Unit, what: "value", verdict: isGone}
			c.old = f.Ours
			out = append(out, c)
		}
	}
	return out
}

func compare(o, n Figure) change {
	c := change{figure: n.key(), unit: n.Unit, what: "value", old: o.Ours, new: n.Ours}
	least := float64(valueNoise)
	if o.Ratio != nil && n.Ratio != nil {
		c.what, c.unit, c.old, c.new = "ratio", "", *o.Ratio, *n.Ratio
		least = ratioNoise
	}
	if n.Unit == countUnit && o.Ours.Median != 0 {
		least = max(least, 100*countNoise/math.Abs(o.Ours.Median))
	}
	if c.old.Median == 0 {
		c.verdict = within
		if c.new.Median != 0 {
			c.verdict = fromZero
		}
		return c
	}
	percent := 100 / math.Abs(c.old.Median)
	c.percent = (c.new.Median - c.old.Median) * percent
	c.noise = max(least, (c.old.Max-c.old.Min+c.new.Max-c.new.Min)/2*percent)
	switch {
	case c.percent <= c.noise && c.percent >= -c.noise:
		c.verdict = within
	case n.Neutral:
		c.verdict = changed
	case c.percent > 0 == n.Higher:
		c.verdict = better
	default:
		c.verdict = worse
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
		switch c.verdict {
		case within:
			still++
		case isNew:
			fmt.Fprintf(t, "  new\t%s\t%s %s\t\t\n", c.figure, number(c.new.Median), c.unit)
		case isGone:
			fmt.Fprintf(t, "  gone\t%s\t%s %s\t\t\n", c.figure, number(c.old.Median), c.unit)
		default:
			fmt.Fprintf(t, "  %s\t%s\t%s %s → %s %s\t%+.0f %%\tnoise ±%.0f %%\n",
				c.verdict, c.figure, c.what, number(c.old.Median), number(c.new.Median), c.unit,
				c.percent, c.noise)
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

// compareChosen is changes without figures that are gone because the newer
// run didn't measure them.
func compareChosen(older, newer *Report) []change {
	all := changes(older, newer)
	if newer.Only == "" && !newer.Interrupted {
		return all
	}
	return slices.DeleteFunc(all, func(c change) bool { return c.verdict == isGone })
}

// mostChanges is how many changes one screen shows.
const mostChanges = 18

// WriteChanges writes what changed most beyond the noise, on one screen, and
// how many figures changed in which way.
func WriteChanges(w io.Writer, older, newer *Report) error {
	count := map[string]int{}
	var beyond []change
	for _, c := range compareChosen(older, newer) {
		count[c.verdict]++
		switch c.verdict {
		case better, worse, changed, fromZero:
			beyond = append(beyond, c)
		}
	}
	slices.SortStableFunc(beyond, func(a, b change) int { return cmp.Compare(b.size(), a.size()) })
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
func (c change) size() float64 {
	if c.noise == 0 {
		return 0
	}
	return math.Abs(c.percent) / c.noise
}

// cells are the change's row on the screen: verdict, percent, both medians and
// name. Medians without a unit are mostly ratios.
func (c change) cells() []string {
	percent := ""
	if c.verdict != fromZero {
		percent = fmt.Sprintf("%+.0f %%", c.percent)
	}
	values := fmt.Sprintf("%s → %s %s", number(c.old.Median), number(c.new.Median), c.unit)
	return []string{c.verdict, percent, strings.TrimSpace(values), shortNames.Replace(c.figure)}
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
