package bench

import (
	"flag"
	"html"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/fix-project/arcavm/pipes"
)

var update = flag.Bool("update", false, "write the golden screens anew")

// wantScreen compares a text with testdata/NAME.txt, and fails if it has more
// than 25 lines or 80 columns.
func wantScreen(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s: %s", path, diff)
	}
	if n := strings.Count(text, "\n"); n > 25 {
		t.Errorf("%s: %d lines", name, n)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(line) - 1; n > 80 {
			t.Errorf("%s: %d columns: %s", name, n, line)
		}
	}
}

// fakeTrips are rounds in which a round trip took that many µs.
func fakeTrips(micros ...float64) (out []trips) {
	for _, m := range micros {
		out = append(out, trips{time.Duration(m * 1000)})
	}
	return out
}

// fakeMoved is what a side did that moved rate MiB in a second, with that many
// system calls and signals per MiB.
func fakeMoved(rate, called, signals float64) moved {
	u := usage{elapsed: time.Second, bytes: int(rate * mebibyte), cpu: time.Second}
	u.counts.pipes.Pipes.Read = pipes.DirectionStats{
		Wakes: uint64(signals * rate), Chunks: uint64(rate),
	}
	return moved{usage: []usage{u, u, u}, calls: []calls{{all: called, moving: called}}}
}

// fakeReport is a report of all items with made-up values. The functions that
// report real ones make its figures.
func fakeReport() *Report {
	few := 0.02
	r := &runner{rounds: 3, calls: &callCounter{tracepoint: 1}, report: &Report{
		Machine: Machine{
			Processor: "AMD EPYC", CPUs: 2, Kernel: "6.18.44",
			KVM:  "kvm_pvm (software: guest kernel code is interpreted)",
			Lane: "/dev/kvm", Version: "v1", Procs: 2, Images: "0123", Others: &few,
		},
		Started: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC),
		Seconds: 335, Rounds: 3, Counted: "all",
	}}
	fakeStreams(r)
	reportGoTrips(r, goTrips{
		waits: fakeTrips(17, 18, 19), handler: fakeTrips(11, 12, 13),
		plain: fakeTrips(9, 10, 11), byTwo: fakeTrips(13, 13, 13),
	})
	reportBootedTrips(r, bootedTrips{
		guest: fakeTrips(200, 206, 199), plain: fakeTrips(9, 10, 9),
		exit: fakeTrips(7, 7, 7), interruptAndExit: fakeTrips(15, 15, 15),
	})
	fakeConnections(r)
	reportFairness(r,
		fairRounds{"guest end in Go", fakeTrips(170, 180), fakeTrips(2100, 2200)},
		fairRounds{"plain sockets", fakeTrips(160, 150), fakeTrips(1500, 1300)})
	reportBoots(r, []int{128, 1 << 10, 64 << 10},
		[][]booting{{{6, 9, 12}}, {{6.2, 9, 12}}, {{36, 40, 43}}})
	for _, toGuest := range []bool{false, true} {
		for _, streams := range []int{1, 8, 64} {
			fakeBulk(r, bulk{toGuest: toGuest, streams: streams})
		}
	}
	return r.report
}

func fakeConnections(r *runner) {
	const n = 800
	took := func(millis int, cpu time.Duration, mallocs uint64) []usage {
		return []usage{{
			elapsed: time.Duration(millis) * time.Millisecond, cpu: n * cpu, mallocs: n * mallocs,
		}}
	}
	plain := took(20, 51*time.Microsecond, 21)
	connections{"guest end in Go", "Go end", lineConnectionsGo}.
		report(r, n, took(30, 68*time.Microsecond, 50), plain)
	connections{"booted guest", "booted guest", lineConnectionsBooted}.
		report(r, n, took(1600, 2200*time.Microsecond, 50), plain)
}

// fakeStreams reports 10, 1000 and 10000 streams at once.
func fakeStreams(r *runner) {
	sides := []*still{{name: "plain"}, {name: "guest end in Go"}, {name: "booted guest"}}
	for _, n := range []int{10, 1000, 10000} {
		idle{}.report(r, sides, n, [][]measured{
			{{memory: 3.9, idleCPU: 0.02, p50: 80, p99: 160}},
			{{memory: 7.2, idleCPU: 0.03, p50: 100, p99: 230}},
			{{memory: 5.4, idleCPU: 0.04, p50: 530, p99: 4000}},
		})
	}
}

// fakeBulk reports rings of all sizes, of which the smallest are slow.
func fakeBulk(r *runner, b bulk) {
	plain := fakeMoved(3400, 37.5, 0)
	for _, ring := range []uint32{64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		laps := mebibyte / float64(ring)
		for _, name := range []string{movingEnd, copyingEnd} {
			ours := fakeMoved(3500-60*laps, 37+laps, 2*laps)
			b.report(r, ringSide{&side{name: name}, ring}, ours, plain, plain)
		}
	}
	for _, ring := range []uint32{64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		laps := mebibyte / float64(ring)
		ours := fakeMoved(2900-150*laps, 30+laps, laps)
		b.report(r, ringSide{&side{name: bootedEnd}, ring}, ours, plain, plain)
	}
}

// The summary is one screen, and each target counts in one of its lines.
func TestSummary(t *testing.T) {
	t.Parallel()
	r := fakeReport()
	for _, f := range r.Figures {
		if f.Target != nil && f.headline == nil {
			t.Errorf("%s has a target and is in no line of the summary", f.key())
		}
	}
	if _, targets := score(r.Figures); targets != 352 {
		t.Errorf("%d targets", targets)
	}
	wantScreen(t, "summary", summaryOf(t, r))
}

func summaryOf(t *testing.T, r *Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.WriteSummary(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The summary of some items has only their lines, which show what was measured.
func TestSummaryOfSome(t *testing.T) {
	t.Parallel()
	r := &runner{calls: &callCounter{}, report: fakeReport()}
	r.report.Figures, r.report.Only, r.report.Interrupted = nil, "bulk", true
	b := bulk{toGuest: true, streams: 8}
	plain := fakeMoved(1000, 30, 0)
	b.report(r, ringSide{&side{name: bootedEnd}, 1 << 20}, fakeMoved(900, 30, 1), plain, plain)
	r.report.Missing = []Missing{
		{"boot", "not on this machine: no KVM"},
		{"connections, booted guest", "not on this machine: no KVM"},
	}
	r.report.Failed = []Missing{{"fairness", "it took too long"}}
	wantScreen(t, "summary-some", summaryOf(t, r.report))
}

// A busy machine gets no verdict.
func TestSummaryLoaded(t *testing.T) {
	t.Parallel()
	r, busy := fakeReport(), 1.5
	r.Machine.Others = &busy
	r.Figures = slices.DeleteFunc(r.Figures, func(f Figure) bool {
		return f.Group != "connections"
	})
	text := summaryOf(t, r)
	wantScreen(t, "summary-loaded", text)
	if strings.Contains(text, "not met") || strings.Contains(text, "targets met.") {
		t.Errorf("a verdict: %s", text)
	}
}

// The page begins with the same lines.
func TestPageBeginsWithSummary(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	r := fakeReport()
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	top, _, _ := strings.Cut(html.UnescapeString(b.String()), "<svg")
	for _, l := range r.summary() {
		for _, cell := range l.cells() {
			if !strings.Contains(top, ">"+cell) {
				t.Errorf("%q isn't in the page's first table", cell)
			}
		}
	}
	wantAll(t, top, r.summaryEnd())
}

// What changed most comes first, on one screen.
func TestChanges(t *testing.T) {
	t.Parallel()
	older, newer := fakeReport(), fakeReport()
	newer.Figures = newer.Figures[1:]
	newer.Figures[len(newer.Figures)-1].Name += ", renamed"
	for i := range newer.Figures {
		if f := &newer.Figures[i]; f.Ratio != nil && i%9 == 0 {
			ratio := *f.Ratio
			ratio.Median *= 1 + float64(i)/1000
			f.Ratio = &ratio
		}
	}
	var b strings.Builder
	if err := WriteChanges(&b, older, newer); err != nil {
		t.Fatal(err)
	}
	wantScreen(t, "changes", b.String())
	b.Reset()
	if err := WriteChanges(&b, older, older); err != nil {
		t.Fatal(err)
	}
	wantScreen(t, "changes-none", b.String())
}

// Words aren't cut, and columns are as wide as they need.
func TestScreen(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	long := strings.Repeat("µ", 78)
	wrap(&b, "a "+long+" b")
	wrap(&b, "ab "+long+" b")
	wrap(&b, "")
	writeColumns(&b, "lr", [][]string{{"a", "µs"}, {"four", "1"}, {"b", ""}})
	want := "a " + long + "\n  b\nab\n  " + long + "\n  b\n\na     µs\nfour   1\nb\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
