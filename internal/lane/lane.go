// Package lane reports a run of tests: it prints what go test prints, and
// counts at the end what was skipped, with the reasons.
package lane

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is what go test -json and test2json print (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// line is one that a package or one of its tests printed.
type line struct{ test, text string }

// Report collects the events of one lane. Not for concurrent use.
type Report struct {
	out     io.Writer
	verbose bool
	// Own is for events of test2json, which knows of no exit code: the
	// packages' results come by EndPackage alone.
	Own bool

	printed map[string][]line            // by package, until it ends
	results map[string]map[string]string // by package and test: pass, fail, skip
	reasons map[string][]string          // tests, by why they were skipped
	counts  map[string]int               // tests, by result
	failed  []string                     // packages
}

// New returns a report that prints to out: with verbose, all that the tests
// print, and else the packages' results and what failed tests printed.
func New(out io.Writer, verbose bool) *Report {
	return &Report{
		out: out, verbose: verbose,
		printed: map[string][]line{}, results: map[string]map[string]string{},
		reasons: map[string][]string{}, counts: map[string]int{},
	}
}

// maxLine bounds a line of the events; go test splits longer output.
const maxLine = 16 << 20

// Read reads events to their end. What is no event is printed as it is.
func (r *Report) Read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if !bytes.HasPrefix(lines.Bytes(), []byte("{")) || json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(r.out, lines.Text())
			continue
		}
		r.take(e)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the events of the tests: %w", err)
	}
	return nil
}

// EndPackage ends a package with a line about its result.
func (r *Report) EndPackage(name, line string, passed bool) {
	result := "fail"
	if passed {
		result = "pass"
	}
	r.endPackage(name, result)
	fmt.Fprintln(r.out, line)
}

func (r *Report) take(e event) {
	switch e.Action {
	case "output":
		if r.verbose {
			fmt.Fprint(r.out, e.Output)
		}
		r.printed[e.Package] = append(r.printed[e.Package], line{e.Test, e.Output})
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		switch {
		case e.Test != "":
			r.endTest(e)
		case !r.Own:
			r.endPackage(e.Package, e.Action)
		}
	}
}

func (r *Report) endTest(e event) {
	if r.results[e.Package] == nil {
		r.results[e.Package] = map[string]string{}
	}
	r.results[e.Package][e.Test] = e.Action
	r.counts[e.Action]++
	if e.Action == "skip" {
		reason := r.reason(e.Package, e.Test)
		r.reasons[reason] = append(r.reasons[reason], e.Test)
	}
}

// place is where a test said something.
var place = regexp.MustCompile(`^ +[\w.-]+\.go:\d+: `)

// reason is what a test said last: t.Skip says it, and ends the test.
func (r *Report) reason(name, test string) string {
	var said []string
	for _, l := range r.printed[name] {
		if l.test != test || isMark(l.text) {
			continue
		}
		if place.MatchString(l.text) {
			said = nil
		}
		said = append(said, strings.TrimSpace(place.ReplaceAllString(l.text, "")))
	}
	return cmp.Or(strings.Join(said, " "), "no reason given")
}

// isMark reports whether a line is of the testing package, about the run or the
// result of a test.
func isMark(text string) bool {
	text = strings.TrimSpace(text)
	return strings.HasPrefix(text, "=== ") || strings.HasPrefix(text, "--- ")
}

// endPackage prints what there is to say about a package: its result and, if it
// failed, all but what its other tests printed.
func (r *Report) endPackage(name, result string) {
	if result == "fail" {
		r.failed = append(r.failed, name)
	}
	results := r.results[name]
	for _, l := range r.printed[name] {
		of := results[l.test]
		switch {
		case r.verbose:
		case result != "fail":
			if l.test == "" && (strings.HasPrefix(l.text, "ok  \t") || strings.HasPrefix(l.text, "?   \t")) {
				fmt.Fprint(r.out, l.text)
			}
		case of != "pass" && of != "skip" && !strings.HasPrefix(l.text, "=== "):
			fmt.Fprint(r.out, l.text)
		}
	}
	delete(r.printed, name)
	delete(r.results, name)
}

// named is how many skipped tests a summary names for each reason.
const named = 3

// Summary counts the tests, subtests too, and says why some were skipped. Each
// of its lines begins with "lane " and the lane's name.
func (r *Report) Summary(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "lane %s: %d tests passed, %d failed, %d skipped\n", name, r.counts["pass"], r.counts["fail"], r.counts["skip"])
	if len(r.failed) > 0 {
		fmt.Fprintf(&b, "lane %s: FAIL: %s\n", name, strings.Join(r.failed, " "))
	}
	most := func(a, b string) int {
		return cmp.Or(len(r.reasons[b])-len(r.reasons[a]), strings.Compare(a, b))
	}
	for _, reason := range slices.SortedFunc(maps.Keys(r.reasons), most) {
		tests := r.reasons[reason]
		more := ""
		if len(tests) > named {
			more = ", …"
		}
		fmt.Fprintf(&b, "lane %s: skipped %d: %s (%s%s)\n", name, len(tests), reason, strings.Join(tests[:min(named, len(tests))], ", "), more)
	}
	return b.String()
}
