// Package bench measures what a guest's streams cost beside plain sockets, on
// this machine and in one run.
//
// An item measures one thing in turn with its neighbours: A B A B. What
// disturbs the machine then disturbs both sides, and their ratio is steadier
// than either value. docs/performance.md says what should be reached.
//
// The words of this package:
//
//	item       what --run chooses: sides that are measured in turn
//	side       one way of doing the work: a guest's streams, or a neighbour
//	neighbour  what stands beside a guest: mostly plain sockets, no guest
//	round      one turn of every side
//	figure     one thing measured: median, least and most of the rounds
//	ratio      our value by the neighbour's, round by round
//	target     what a figure or its ratio should reach
//	headline   a figure's place in the summary
//	scope      what an item has opened and must close
//	rig        a guest in Go and a relay on shared memory, without KVM
//	booted     a guest that KVM runs
//	part       this program again, as a process that an item needs
//	flow       one way of one stream: a sender and a receiver
//	floor      what no exit and no interrupt can be faster than here
package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fix-project/arcavm/emulated"
)

// Options say what to run and for how long.
type Options struct {
	// Rounds is how often each thing is measured, 1 or more. Default 5, or 3
	// with Quick.
	Rounds int
	// Quick measures for a shorter time and less.
	Quick bool
	// Only selects items: the one that has this name, or if there is none all
	// whose names match it as a regular expression. "": all of them.
	Only string
	// Progress, if not nil, is called with an item's name before it runs.
	Progress func(item string)
	// Version is that of the program, for the report.
	Version string
	// Arcavm is the file of the arcavm command, whose start is measured as a
	// process of its own. "": it isn't measured.
	Arcavm string
}

// patience is how long one item may take. Only an item that hangs reaches it.
// Emulated hardware is slow, so there it is longer.
func patience() time.Duration {
	if emulated.Inside() {
		return 30 * time.Minute
	}
	return 10 * time.Minute
}

// ErrNoMatch is what Run's error wraps if nothing was chosen.
var ErrNoMatch = errors.New("no measurement has a name that matches")

// errMissing is what an item wraps if the machine lacks something that it
// needs.
var errMissing = errors.New("not on this machine")

// errBroken is what the error of a scope's end wraps if a wake-up was lost. It
// makes an item fail even where the same error wraps errMissing.
var errBroken = errors.New("what was measured doesn't count")

// item is one thing to measure, in a scope of its own.
type item struct {
	name string
	run  func(*scope, *runner) error
}

// runner has what all items of a run need, and their report.
type runner struct {
	rounds int
	quick  bool
	arcavm string
	report *Report
	calls  *callCounter // nil: system calls can't be counted
}

// slice is how long one side should take in one round.
func (r *runner) slice() time.Duration {
	if r.quick {
		return 20 * time.Millisecond
	}
	return 80 * time.Millisecond
}

func (r *runner) add(f Figure) { r.report.Figures = append(r.report.Figures, f) }

// missing notes what the machine lacks for something of that name, if that is
// what err is about, and returns nil: the rest goes on without it. Otherwise it
// returns err.
func (r *runner) missing(name string, err error) error {
	if !errors.Is(err, errMissing) || errors.Is(err, errBroken) {
		return err
	}
	if m := (Missing{Name: name, Reason: err.Error()}); !slices.Contains(r.report.Missing, m) {
		r.report.Missing = append(r.report.Missing, m)
	}
	return nil
}

// Names are those of all items, in the order of a report.
func Names(quick bool) []string {
	var names []string
	for _, it := range items(quick) {
		names = append(names, it.name)
	}
	return names
}

// Run measures, and returns when all is measured, which takes minutes. What
// can't be measured on this machine is listed in the report, and so is an item
// that failed. If ctx ends first, its cause is the error, and the report has
// what was measured until then. With any other error there is no report:
// [ErrNoMatch], or the error of the regular expression in o.Only.
func Run(ctx context.Context, o Options) (*Report, error) {
	return run(ctx, o, items(o.Quick))
}

func run(ctx context.Context, o Options, all []item) (*Report, error) {
	if o.Rounds <= 0 {
		o.Rounds = 5
		if o.Quick {
			o.Rounds = 3
		}
	}
	chosen, err := choose(o.Only, all)
	if err != nil {
		return nil, err
	}
	r := newRunner(o)
	start, others := time.Now(), watchOthers()
	finish := func() {
		r.report.Seconds = time.Since(start).Seconds()
		r.report.Machine.Others = others()
	}
	for _, it := range chosen {
		if o.Progress != nil {
			o.Progress(it.name)
		}
		err := it.runBounded(ctx, r)
		if ctx.Err() != nil {
			r.report.Interrupted = true
			finish()
			return r.report, context.Cause(ctx)
		}
		if err := r.missing(it.name, err); err != nil {
			r.report.Failed = append(r.report.Failed, Missing{Name: it.name, Reason: err.Error()})
		}
	}
	finish()
	return r.report, nil
}

// choose returns the item that is called only, or all whose names it matches.
func choose(only string, all []item) ([]item, error) {
	named := func(it item) bool { return it.name == only }
	if i := slices.IndexFunc(all, named); i >= 0 {
		return all[i : i+1], nil
	}
	expression, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	var chosen []item
	var names []string
	for _, it := range all {
		names = append(names, it.name)
		if expression.MatchString(it.name) {
			chosen = append(chosen, it)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%w %q; there are: %s", ErrNoMatch, only, strings.Join(names, "; "))
	}
	return chosen, nil
}

func newRunner(o Options) *runner {
	r := &runner{rounds: o.Rounds, quick: o.Quick, arcavm: o.Arcavm}
	r.report = &Report{
		Machine: describeMachine(o.Version), Started: time.Now().UTC(),
		Rounds: o.Rounds, Quick: o.Quick, Only: o.Only,
	}
	var err error
	if r.calls, err = newCallCounter(); err != nil {
		_ = r.missing("system calls", err)
	} else {
		r.report.Counted = r.calls.what
	}
	return r
}

func (it item) runBounded(ctx context.Context, r *runner) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience(), errors.New("it took too long"))
	defer cancel()
	s := newScope(ctx)
	defer func() {
		cause := context.Cause(ctx)
		if closing := s.close(); err == nil || cause == nil {
			err = errors.Join(err, closing)
		}
		if cause != nil {
			err = errors.Join(cause, err)
		}
	}()
	return it.run(s, r)
}

// interleave measures the sides in turn. The first round warms them up and
// doesn't count. The result has a row for each side, with a value for each
// round that counts.
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

// pick returns f of each value in a row.
func pick[T any](row []T, f func(T) float64) []float64 {
	out := make([]float64, len(row))
	for i, v := range row {
		out[i] = f(v)
	}
	return out
}
