package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/leased"
	"github.com/fix-project/arcavm/pipes"
)

func TestMain(m *testing.M) {
	Init()
	goleak.VerifyTestMain(m)
}

func TestSpread(t *testing.T) {
	t.Parallel()
	tests := []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{4, 1, 2, 3}, Spread{2.5, 1, 4}},
	}
	for _, c := range tests {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%v: got %v, want %v", c.values, got, c.want)
		}
	}
}

func TestRatios(t *testing.T) {
	t.Parallel()
	got := ratios([]float64{1, 2, 3}, []float64{2, 0, 1})
	if diff := cmp.Diff([]float64{0.5, 3}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	tests := []struct {
		values []int
		p      float64
		want   int
	}{
		{[]int{7}, 0.5, 7},
		{[]int{7}, 0, 7},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
		{hundred, 1, 100},
	}
	for _, c := range tests {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("%v of %d values: got %d, want %d", c.p, len(c.values), got, c.want)
		}
	}
}

func TestInterleave(t *testing.T) {
	t.Parallel()
	var order strings.Builder
	side := func(name string) func() (string, error) {
		return func() (string, error) { order.WriteString(name); return name, nil }
	}
	rows, err := interleave(t.Context(), 2, []func() (string, error){side("A"), side("B")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"A", "A"}, {"B", "B"}}, rows); diff != "" || order.String() != "ABABAB" {
		t.Errorf("order %s\n%s", order.String(), diff)
	}

	broken := errors.New("broken")
	_, err = interleave(t.Context(), 1, []func() (int, error){func() (int, error) { return 0, broken }})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = interleave(ctx, 1, []func() (int, error){func() (int, error) { return 0, nil }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 1234.6: "1235", 12.34: "12.3", 1.234: "1.23",
		0.012: "0.01", 0.0012: "0.0012", -3: "-3.00",
	} {
		if got := number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

// sample has a figure of each kind.
func sample() *Report {
	at := &Point{Way: "guest → TCP", Series: "Go end", Ring: 1 << 20, Streams: 64}
	rates := []float64{90, 95, 100}
	fast := newFigure("bulk", "throughput", "MiB/s", rates)
	fast.Higher, fast.Point = true, at
	fast = fast.beside("plain", rates, []float64{100, 100, 100}).wantRatioAtLeast(0.95)
	slow := newFigure("bulk", "signals", "/MiB", []float64{8, 9, 10}).wantBelow(4)
	alone := Figure{Group: "boot", Name: "<whole>", Unit: "ms", Ours: spreadOf([]float64{5})}
	return &Report{
		Machine: Machine{
			Processor: "a processor", CPUs: 2, Kernel: "6.1", KVM: "kvm_x",
			Lane: "/dev/kvm", Go: "go1", Version: "v1", Load: "0 0 0",
		},
		Started: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC), Seconds: 7, Rounds: 3,
		Figures: []Figure{fast, slow, alone},
		Missing: []Missing{{"floor", "no KVM"}, {"slirp", "no tool"}, {"boot", "no KVM"}},
		Failed:  []Missing{{"fairness", "it took too long"}},
		Counted: "all",
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "report.json")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := sample().WriteJSON(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	broken := leased.Hold(t, path)
	got, err := ReadJSON(path)
	if err != nil {
		t.Fatal(err)
	}
	leased.WantBroken(t, broken)
	if diff := cmp.Diff(sample(), got, cmp.AllowUnexported(Figure{})); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"", "[]", "{}", `{"started": "2001-02-03T04:05:06Z"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadJSON(path); !errors.Is(err, ErrNoReport) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadJSON(path); !errors.Is(err, ErrNoReport) {
		t.Errorf("a FIFO: %v", err)
	}
}

func wantAll(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := sample().WriteText(&b); err != nil {
		t.Fatal(err)
	}
	wantAll(t, b.String(), "2001-02-03 04:05 UTC", "kvm_x", "95.0", "90.0–100",
		"ratio ≥ 0.95: met", "< 4.00: not met",
		"Not measured\n  floor; boot: no KVM\n  slirp: no tool\n",
		"Failed\n  fairness: it took too long", "system calls counted: all", "1 of 2 targets met")
}

func TestHTML(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := sample().WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	wantAll(t, b.String(), "<svg", "guest → TCP, 64 streams", "<li>fairness: it took too long",
		"<li>floor; boot: no KVM", "prefers-color-scheme: dark", "&lt;whole&gt;",
		"ratio ≥ 0.95: met", "1 of 2 targets")
	// Throughput over ring size and over streams, bulk's ratio and its signals,
	// and the boot make five plots.
	if n := strings.Count(b.String(), "<svg"); n != 5 || strings.Contains(b.String(), "<?xml") {
		t.Errorf("%d plots, or an XML declaration", n)
	}
	if regexp.MustCompile(`(src|href)=`).Match(b.Bytes()) {
		t.Error("the page loads something")
	}
}

// A plot shows no more values than can be read, and each value is in a plot.
func TestReadable(t *testing.T) {
	t.Parallel()
	var many []bar
	for i := range 30 {
		for _, quantity := range []string{"exits", "signals: of both"} {
			many = append(many, bar{name: fmt.Sprintf("ring %d: %s", i, quantity)})
		}
	}
	parts := readable(many)
	if len(parts) != 2 || len(parts[0].bars) != 30 || parts[1].quantity != "signals: of both" || parts[1].bars[29].name != "ring 29" {
		t.Errorf("%+v", parts)
	}
	if few := readable(many[:3]); len(few) != 1 || few[0].quantity != "" || len(few[0].bars) != 3 {
		t.Errorf("%+v", few)
	}
}

// slower is the sample as a later run might measure it: a ratio is worse, a
// value better, and one figure has another name.
func slower() *Report {
	newer := sample()
	ratio := Spread{Median: 0.5, Min: 0.45, Max: 0.55}
	newer.Figures[0].Ratio = &ratio
	newer.Figures[1].Ours = Spread{Median: 5, Min: 4, Max: 6}
	newer.Figures[2].Name = "part"
	newer.Machine.Kernel = "6.2"
	newer.Quick = true
	return newer
}

func TestCompare(t *testing.T) {
	t.Parallel()
	var verdicts []string
	for _, c := range changes(sample(), slower()) {
		verdicts = append(verdicts, c.figure+" "+c.what+" "+c.verdict)
	}
	want := []string{
		"bulk: throughput ratio worse", "bulk: signals value better",
		"boot: part value new", "boot: <whole> value gone",
	}
	if diff := cmp.Diff(want, verdicts); diff != "" {
		t.Error(diff)
	}
	for _, c := range changes(sample(), sample()) {
		if c.verdict != "within the noise" {
			t.Errorf("the same twice: %+v", c)
		}
	}
}

func TestCompareNoise(t *testing.T) {
	t.Parallel()
	exactly := func(v float64) Figure { return Figure{Ours: Spread{Median: v, Min: v, Max: v}} }
	about := func(v float64) Figure { return Figure{Ours: Spread{Median: v, Min: v - 2, Max: v + 2}} }
	neutral := func(v float64) Figure { return Figure{Neutral: true, Ours: exactly(v).Ours} }
	counted := func(v float64) Figure { return Figure{Unit: "/MiB", Ours: exactly(v).Ours} }
	beside := func(v float64) Figure {
		r := exactly(v).Ours
		return Figure{Unit: "/MiB", Ours: Spread{Median: 33}, Ratio: &r}
	}
	for _, c := range []struct {
		what string
		is   func(float64) Figure
		a, b float64
		want string
	}{
		{"a median below 0", exactly, -4, -8, "better"},
		{"through 0", exactly, -4, 4, "worse"},
		{"neither good nor bad", neutral, 4, 8, "changed"},
		{"little", exactly, 10, 12, "within the noise"},
		{"spreads that overlap", about, 10, 13.9, "within the noise"},
		{"spreads that don't", about, 10, 14.1, "worse"},
		{"a few more in many MiB", counted, 0.1, 0.5, "within the noise"},
		{"one more in each MiB", counted, 1, 2, "worse"},
		{"a ratio, little", beside, 1, 1.015, "within the noise"},
		{"a ratio", beside, 1, 1.03, "worse"},
	} {
		if got := compare(c.is(c.a), c.is(c.b)).verdict; got != c.want {
			t.Errorf("%s: %g → %g: %s, want %s", c.what, c.a, c.b, got, c.want)
		}
	}
}

func TestWriteComparison(t *testing.T) {
	t.Parallel()
	newer := slower()
	var b strings.Builder
	if err := WriteComparison(&b, sample(), newer); err != nil {
		t.Fatal(err)
	}
	wantAll(t, b.String(), "gone", "worse", "-47 %", "noise ±11 %", "0.95 → 0.50",
		"another machine", "was quick", "0 figures within the noise")
	b.Reset()
	newer.Only = "bulk"
	if err := WriteComparison(&b, sample(), newer); err != nil || strings.Contains(b.String(), "gone") {
		t.Errorf("what wasn't chosen is said to be gone: %v\n%s", err, b.String())
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	var ran []string
	report, err := Run(t.Context(), Options{
		Quick: true, Rounds: 1, Only: "round trip, guest end in Go", Version: "v1",
		Progress: func(name string) { ran = append(ran, name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(ran) != 1 || len(report.Figures) != 9 || report.Rounds != 1 || report.Machine.Version != "v1" || len(report.Failed) != 0 {
		t.Errorf("ran %q, report %+v", ran, report)
	}
	if _, err := Run(t.Context(), Options{Only: "("}); err == nil {
		t.Error("no error for a bad expression")
	}
	if _, err := Run(t.Context(), Options{Only: "xyzzy"}); err == nil || !strings.Contains(err.Error(), "round trip") {
		t.Errorf("nothing to run: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{Quick: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// The name of an item selects it alone; anything else is an expression.
func TestChoose(t *testing.T) {
	t.Parallel()
	all := items(false)
	for only, want := range map[string]int{
		"": len(all), "boot": 1, "booted": 8, "round trip, booted guest": 1, "^(boot|fairness)$": 2, "round trip": 2,
	} {
		chosen, err := choose(only, all)
		if err != nil || len(chosen) != want {
			t.Errorf("%q: %d items, %v; want %d", only, len(chosen), err, want)
		}
	}
	if names := Names(false); len(names) != len(all) || !slices.Contains(names, "boot") {
		t.Errorf("names %q", names)
	}
}

// What was measured before the context ended is in the report.
func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	report, err := run(ctx, Options{Rounds: 1}, []item{
		{"first", func(_ *scope, r *runner) error { r.add(Figure{Group: "g", Name: "n"}); return nil }},
		{"second", func(s *scope, _ *runner) error { cancel(enough); <-s.ctx.Done(); return s.ctx.Err() }},
		{"third", func(*scope, *runner) error { t.Error("the third ran"); return nil }},
	})
	if !errors.Is(err, enough) || report == nil || len(report.Figures) != 1 || !report.Interrupted || len(report.Failed) != 0 {
		t.Fatalf("%v, %+v", err, report)
	}
	var b strings.Builder
	if err := report.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	wantAll(t, b.String(), "interrupted")
	b.Reset()
	if err := WriteComparison(&b, sample(), report); err != nil || strings.Contains(b.String(), "gone") {
		t.Errorf("%v: what wasn't reached is said to be gone:\n%s", err, b.String())
	}
}

// A machine with other work to do makes nothing better or worse.
func TestLoaded(t *testing.T) {
	t.Parallel()
	others := func(v float64) *float64 { return &v }
	for _, c := range []struct {
		machine Machine
		want    bool
	}{
		{Machine{CPUs: 2, Load: "9 9 9", Others: others(0.1)}, false},
		{Machine{CPUs: 2, Load: "0 0 0", Others: others(0.3)}, true},
		{Machine{CPUs: 2, Load: "0.15 1 1"}, false},
		{Machine{CPUs: 2, Load: "1.15 0 0"}, true},
		{Machine{CPUs: 2, Load: "unknown"}, false},
	} {
		if got := c.machine.loaded(); got != c.want {
			t.Errorf("%+v: %v", c.machine, got)
		}
	}
	newer := sample()
	ratio := Spread{Median: 0.5, Min: 0.45, Max: 0.55}
	newer.Figures[0].Ratio = &ratio
	newer.Machine.Others = others(1.5)
	for _, c := range changes(sample(), newer) {
		if c.verdict == "better" || c.verdict == "worse" {
			t.Errorf("%+v", c)
		}
	}
	var b strings.Builder
	if err := errors.Join(WriteComparison(&b, sample(), newer), newer.WriteText(&b)); err != nil {
		t.Fatal(err)
	}
	wantAll(t, b.String(), "This run's machine was busy", "other work while it ran: 1.50 of 2 CPUs")
}

// The work of another process is seen.
func TestWatchOthers(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one processor: the other process and this one can't both work")
	}
	others := watchOthers()
	spin := exec.Command("sh", "-c", "while :; do :; done")
	if err := spin.Start(); err != nil {
		t.Skip(err)
	}
	defer spin.Wait()
	defer spin.Process.Kill()
	deadline := time.Now().Add(30 * time.Second)
	// The work of a child that hasn't been waited for counts as another's.
	for {
		got := others()
		if got == nil {
			t.Skip("/proc/stat says nothing")
		}
		if *got > 0.2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("another process spins, and others' work is %v", *got)
		}
	}
}

// An item that fails or can't be measured leaves the others alone.
func TestRunGoesOn(t *testing.T) {
	t.Parallel()
	good := func(_ *scope, r *runner) error { r.add(Figure{Group: "g", Name: "n"}); return nil }
	report, err := run(t.Context(), Options{Rounds: 1}, []item{
		{"broken", func(*scope, *runner) error { return errors.New("out of luck") }},
		{"absent", func(_ *scope, r *runner) error {
			// The same is missing twice and must be listed once.
			_ = r.missing("part", errMissing)
			_ = r.missing("part", errMissing)
			return fmt.Errorf("%w: a tool", errMissing)
		}},
		{"lost", func(*scope, *runner) error { return errors.Join(errMissing, errRescued(3)) }},
		{"good", good},
	})
	if err != nil {
		t.Fatal(err)
	}
	names := func(list []Missing) (out []string) {
		for _, m := range list {
			out = append(out, m.Name)
		}
		return out
	}
	if diff := cmp.Diff([]string{"broken", "lost"}, names(report.Failed)); diff != "" {
		t.Error(diff)
	}
	if got := names(report.Missing); !slices.Contains(got, "absent") || strings.Count(strings.Join(got, " "), "part") != 1 {
		t.Errorf("missing: %q", got)
	}
	if len(report.Figures) != 1 || !strings.Contains(report.Failed[1].Reason, "3 wake-ups") {
		t.Errorf("%+v", report)
	}
}

func TestSince(t *testing.T) {
	t.Parallel()
	direction := func(n uint64) pipes.DirectionStats {
		return pipes.DirectionStats{Bytes: n, Chunks: n, Signals: n, Suppressed: n, Wakes: n, SpuriousWakes: n}
	}
	all := func(n uint64) counts {
		return counts{
			exits: n, hypercalls: n,
			pipes: pipes.Stats{
				Opened: n, Broken: n, Rescued: n, Forgotten: n, Late: n, Doorbells: n,
				Pipes: pipes.PipeStats{Read: direction(n), Write: direction(2 * n)},
			},
		}
	}
	if diff := cmp.Diff(all(5), all(12).since(all(7)), cmp.AllowUnexported(counts{})); diff != "" {
		t.Error(diff)
	}
}

// Both ways of counting see the calls that this test makes.
func TestCountCalls(t *testing.T) {
	c, err := newCallCounter()
	if err != nil {
		t.Skip(err)
	}
	counters := map[string]*callCounter{c.what: c, "/proc/self/io": {}}
	for name, c := range counters {
		const n = 1000
		f, err := os.Open("/dev/zero")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := c.count(func() error {
			b := make([]byte, 1)
			for range n {
				// Calls of other threads must be counted, too.
				done := make(chan error)
				go func() { _, err := f.Read(b); done <- err }()
				if err := <-done; err != nil {
					return err
				}
			}
			return nil
		})
		// What runs beside this test is counted as well, so there is no upper
		// limit.
		if err != nil || got.all < n || got.moving < n {
			t.Errorf("%s: %v calls, %v; want %d at least", name, got, err, n)
		}
		broken := errors.New("broken")
		if _, err := c.count(func() error { return broken }); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is opened while the item's context ends is closed, too: otherwise a
// reader of it would hang.
func TestScopeThatHasEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := newScope(ctx)
	early, late := make(chan struct{}), false
	s.keep(closeFunc(func() { close(early) }))
	cancel()
	<-early
	s.keep(closeFunc(func() { late = true }))
	if !late {
		t.Error("what was kept after the end is open")
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	// The context may end while the scope begins.
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if err := newScope(ctx).close(); err != nil {
			t.Error(err)
		}
	}
}

// A report of a stranger doesn't act on the terminal.
func TestReadControlCharacters(t *testing.T) {
	t.Parallel()
	for text, bad := range map[string]bool{`\u001b[2J`: true, `\u009b2J`: true, "a\\nb\\tc": false} {
		path := filepath.Join(t.TempDir(), "report")
		data := `{"started":"2026-01-02T03:04:05Z","rounds":1,"machine":{"processor":"` + text + `"}}`
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadJSON(path); errors.Is(err, ErrNoReport) != bad || !bad && err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
