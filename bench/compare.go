package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// Change is what became of one figure between two reports.
type Change struct {
	Figure string
	Unit   string
	What   string // "ratio" where there is a neighbour, since that cancels the machine's mood; otherwise "value"
	Old    Spread
	New    Spread
	// Percent is the change of the median, and Noise half of both spreads together, in percent of the old median: what is beyond has spreads that
	// hardly overlap.
	Percent, Noise float64
	Verdict        string // better, worse, changed, within the noise, new or gone
}

// Noise is at least this. From run to run a machine's speed changes, and how much a round moves; a neighbour in the same run has both, too. What starts
// and ends a round is counted with it, so what happens less than once in two MiB may come from there.
const (
	ratioNoise = 2   // percent
	valueNoise = 25  // percent
	countNoise = 0.5 // per MiB
)

// Compare returns a change for each figure of both reports, in the order of the newer one; what is gone comes last.
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
			out = append(out, Change{Figure: f.key(), Unit: f.Unit, What: "value", New: f.Ours, Verdict: "new"})
			continue
		}
		delete(was, f.key())
		c := compare(o, f)
		if loaded && (c.Verdict == "better" || c.Verdict == "worse") {
			// It may be the other work that has changed.
			c.Verdict = "changed"
		}
		out = append(out, c)
	}
	for _, f := range older.Figures {
		if _, left := was[f.key()]; left {
			out = append(out, Change{Figure: f.key(), Unit: f.Unit, What: "value", Old: f.Ours, Verdict: "gone"})
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
		c.Verdict = "within the noise"
		if c.New.Median != 0 {
			c.Verdict = "changed from 0"
		}
		return c
	}
	percent := 100 / math.Abs(c.Old.Median)
	c.Percent = (c.New.Median - c.Old.Median) * percent
	c.Noise = max(least, (c.Old.Max-c.Old.Min+c.New.Max-c.New.Min)/2*percent)
	switch {
	case c.Percent <= c.Noise && c.Percent >= -c.Noise:
		c.Verdict = "within the noise"
	case n.Neutral:
		c.Verdict = "changed"
	case c.Percent > 0 == n.Higher:
		c.Verdict = "better"
	default:
		c.Verdict = "worse"
	}
	return c
}

// WriteComparison writes what changed, and how many figures did not. What is gone counts only if everything was measured.
func WriteComparison(w io.Writer, older, newer *Report) error {
	fmt.Fprintf(w, "\nCompared with the run of %s\n", older.Started.Format("2006-01-02 15:04 UTC"))
	if older.Machine.Processor != newer.Machine.Processor || older.Machine.Kernel != newer.Machine.Kernel || older.Machine.KVM != newer.Machine.KVM {
		fmt.Fprintf(w, "  That was another machine: %s, Linux %s, KVM: %s\n", older.Machine.Processor, older.Machine.Kernel, older.Machine.KVM)
	}
	if o, n := older.Machine, newer.Machine; o.Procs != n.Procs || o.Images != n.Images {
		fmt.Fprintf(w, "  That was with GOMAXPROCS %d and guest images %s, now it is %d and %s\n", o.Procs, o.Images, n.Procs, n.Images)
	}
	for _, of := range []struct {
		run     string
		machine *Machine
	}{{"That run's", &older.Machine}, {"This run's", &newer.Machine}} {
		if of.machine.loaded() {
			fmt.Fprintf(w, "  %s machine was busy with other work: nothing is called better or worse\n", of.run)
		}
	}
	if older.Quick != newer.Quick {
		fmt.Fprintln(w, "  One of the runs was quick, the other wasn't: what starts and ends a round weighs more in a quick one")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	still := 0
	for _, c := range Compare(older, newer) {
		switch c.Verdict {
		case "within the noise":
			still++
		case "new":
			fmt.Fprintf(t, "  new\t%s\t%s %s\t\t\n", c.Figure, number(c.New.Median), c.Unit)
		case "gone":
			if newer.Only != "" || newer.Interrupted {
				continue
			}
			fmt.Fprintf(t, "  gone\t%s\t%s %s\t\t\n", c.Figure, number(c.Old.Median), c.Unit)
		default:
			fmt.Fprintf(t, "  %s\t%s\t%s %s → %s %s\t%+.0f %%\tnoise ±%.0f %%\n", c.Verdict, c.Figure,
				c.What, number(c.Old.Median), number(c.New.Median), c.Unit, c.Percent, c.Noise)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write comparison: %w", err)
	}
	_, err := fmt.Fprintf(w, "  %d figures within the noise\n", still)
	return err
}
