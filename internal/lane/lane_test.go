package lane

import (
	"bytes"
	"strings"
	"testing"
)

const events = `{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"what a good test says\n"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"--- PASS: TestGood (0.00s)\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: a first word\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:10: there is none:\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        install one\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    --- SKIP: TestB/sub (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB/sub"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.01s\n"}
{"Action":"pass","Package":"p"}
`

const failing = `# q
{"ImportPath":"r","Action":"build-output","Output":"r.go:1: no\n"}
{"Action":"output","Package":"q","Test":"TestGood","Output":"what a good test says\n"}
{"Action":"pass","Package":"q","Test":"TestGood"}
{"Action":"output","Package":"q","Test":"TestBad","Output":"    b_test.go:3: broken\n"}
{"Action":"output","Package":"q","Test":"TestBad","Output":"--- FAIL: TestBad (0.00s)\n"}
{"Action":"fail","Package":"q","Test":"TestBad"}
{"Action":"output","Package":"q","Test":"TestUnended","Output":"panic: a word\n"}
{"Action":"output","Package":"q","Output":"FAIL\tq\t0.01s\n"}
{"Action":"fail","Package":"q"}
`

func read(t *testing.T, text string, verbose bool) (*Report, string) {
	t.Helper()
	var out bytes.Buffer
	r := New(&out, verbose)
	if err := r.Read(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	return r, out.String()
}

func TestSkipped(t *testing.T) {
	t.Parallel()
	r, out := read(t, events, false)
	if want := "ok  \tp\t0.01s\n"; out != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	const want = "lane x: 1 tests passed, 0 failed, 2 skipped\n" +
		"lane x: skipped 1: no reason given (TestB/sub)\n" +
		"lane x: skipped 1: there is none: install one (TestA)\n"
	if got := r.Summary("x"); got != want {
		t.Errorf("summary:\n%swant:\n%s", got, want)
	}
}

func TestFailed(t *testing.T) {
	t.Parallel()
	r, out := read(t, events+failing, false)
	const want = "ok  \tp\t0.01s\n# q\nr.go:1: no\n" +
		"    b_test.go:3: broken\n--- FAIL: TestBad (0.00s)\npanic: a word\nFAIL\tq\t0.01s\n"
	if out != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	if got := r.Summary("x"); !strings.HasPrefix(got, "lane x: 2 tests passed, 1 failed, 2 skipped\nlane x: FAIL: q\n") {
		t.Errorf("summary:\n%s", got)
	}
}

func TestVerbose(t *testing.T) {
	t.Parallel()
	_, out := read(t, events, true)
	for _, want := range []string{"=== RUN   TestGood\n", "what a good test says\n", "PASS\nok  \tp\t0.01s\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed %q without %q", out, want)
		}
	}
}

// A reason that many tests give is one line.
func TestSameReason(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for _, test := range []string{"TestA", "TestB", "TestC", "TestD"} {
		text.WriteString(`{"Action":"output","Package":"p","Test":"` + test + `","Output":"    a_test.go:1: none here\n"}` + "\n")
		text.WriteString(`{"Action":"skip","Package":"p","Test":"` + test + `"}` + "\n")
	}
	r, _ := read(t, text.String(), false)
	if got, want := r.Summary("x"), "lane x: skipped 4: none here (TestA, TestB, TestC, …)\n"; !strings.HasSuffix(got, want) {
		t.Errorf("summary:\n%swant at its end:\n%s", got, want)
	}
}

// A program that ends with an error has failed, whatever it printed before.
func TestEndPackage(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := New(&out, false)
	r.Own = true
	if err := r.Read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	r.EndPackage("p", "FAIL\tp", false)
	if want := "    --- SKIP: TestB/sub (0.00s)\nPASS\nok  \tp\t0.01s\nFAIL\tp\n"; out.String() != want {
		t.Errorf("printed %q, want %q", &out, want)
	}
	if got := r.Summary("x"); !strings.Contains(got, "lane x: FAIL: p\n") {
		t.Errorf("summary:\n%s", got)
	}
}
