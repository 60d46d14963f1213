// Package bench measures what a guest's streams cost beside plain sockets, on this machine and in one run.
//
// An [item] measures one thing together with its neighbours, one after the other and again: A B A B. So what disturbs the machine disturbs both.
// A [Figure] is the median of these rounds, its spread, and the ratio to the neighbour round by round.
package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Options say what to run and for how long.
type Options struct {
	// Rounds is how often each thing is measured, 1 or more. Default 5, or 3 with Quick.
	Rounds int
	// Quick measures for a shorter time and less.
	Quick bool
	// Only selects items by name. nil: all of them.
	Only *regexp.Regexp
	// Progress, if not nil, is called with an item's name before it runs.
	Progress func(item string)
	// Version is that of the program, for the report.
	Version string
}

// patience is how long one item may take; it is reached only by one that hangs.
const patience = time.Minute

// errMissing is what an item wraps if the machine lacks something that it needs.
var errMissing = errors.New("this machine lacks what it needs")

// item is one thing to measure.
type item struct {
	name string
	run  func(context.Context, *runner) error
}

// runner is what items run with and report to.
type runner struct {
	rounds int
	quick  bool
	report *Report
	floor  float64 // a hypercall and an interrupt in µs; 0 if not measured
}

// slice is for how long one side is measured in one round.
func (r *runner) slice() time.Duration {
	if r.quick {
		return 20 * time.Millisecond
	}
	return 80 * time.Millisecond
}

func (r *runner) add(f Figure) { r.report.Figures = append(r.report.Figures, f) }

// Run measures. An item that can't be measured on this machine is listed in the report; one that fails ends the run.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Rounds <= 0 {
		o.Rounds = 5
		if o.Quick {
			o.Rounds = 3
		}
	}
	r := &runner{rounds: o.Rounds, quick: o.Quick}
	var names []string
	var chosen []item
	for _, it := range items(o.Quick) {
		names = append(names, it.name)
		if o.Only == nil || o.Only.MatchString(it.name) {
			chosen = append(chosen, it)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("nothing is named %q; there are: %s", o.Only, strings.Join(names, "; "))
	}
	start := time.Now()
	r.report = &Report{Machine: describeMachine(o.Version), Started: start.UTC(), Rounds: o.Rounds, Quick: o.Quick}
	for _, it := range chosen {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if o.Progress != nil {
			o.Progress(it.name)
		}
		err := it.runBounded(ctx, r)
		if errors.Is(err, errMissing) {
			r.report.Missing = append(r.report.Missing, Missing{Name: it.name, Reason: err.Error()})
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", it.name, err)
		}
	}
	r.report.Seconds = time.Since(start).Seconds()
	return r.report, nil
}

func (it item) runBounded(ctx context.Context, r *runner) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return it.run(ctx, r)
}

// interleave measures the sides in turn, after a turn that doesn't count. The result has a row for each side, with a value for each round.
func interleave[T any](ctx context.Context, rounds int, sides []func() (T, error)) ([][]T, error) {
	rows := make([][]T, len(sides))
	for round := range rounds + 1 {
		for i, side := range sides {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			v, err := side()
			if err != nil {
				return nil, err
			}
			if round > 0 {
				rows[i] = append(rows[i], v)
			}
		}
	}
	return rows, nil
}

// pick returns one number of each value.
func pick[T any](row []T, f func(T) float64) []float64 {
	out := make([]float64, len(row))
	for i, v := range row {
		out[i] = f(v)
	}
	return out
}
