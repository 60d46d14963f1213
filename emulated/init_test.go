package emulated

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func TestRunProgram(t *testing.T) {
	t.Parallel()
	file, err := os.Executable()
	must(t, err)
	for _, test := range []struct {
		program string
		path    string
		want    exitReport
		out     string
	}{
		{"exit7", file, exitReport{Code: 7}, "to stdout: [x\xFF]\n"},
		{"die", file, exitReport{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL)}, ""},
		{"missing", "/no/such/program", exitReport{Code: -1, Error: "fork/exec /no/such/program: no such file or directory"}, ""},
	} {
		t.Run(test.program, func(t *testing.T) {
			t.Parallel()
			var link bytes.Buffer
			var current target
			report := runProgram(&frameWriter{w: &link}, &current, plannedProgram{
				Path: []byte(test.path), Args: [][]byte{[]byte("x\xFF")}, Dir: []byte("/"), Env: [][]byte{[]byte(programVariable + "=" + test.program)},
			}, nil)
			if diff := cmp.Diff(test.want, report, cmpopts.IgnoreFields(exitReport{}, "Duration")); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			out := ""
			for link.Len() > 0 {
				kind, payload, err := readFrame(&link)
				must(t, err)
				if kind == frameStdout {
					out += string(payload)
				}
			}
			if out != test.out {
				t.Errorf("stdout is %q, want %q", out, test.out)
			}
		})
	}
}

// A signal that comes before a program runs is for that program.
func TestRunProgramEarlySignal(t *testing.T) {
	t.Parallel()
	file, err := os.Executable()
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	late := time.AfterFunc(30*time.Second, func() { w.Close() })
	defer late.Stop()
	var current target
	current.signal(unix.SIGKILL)
	report := runProgram(&frameWriter{w: io.Discard}, &current, plannedProgram{
		Path: []byte(file), Dir: []byte("/"), Env: [][]byte{[]byte(programVariable + "=stdin")},
	}, r)
	if report.Signal != int(unix.SIGKILL) {
		t.Errorf("the program ended with %+v", report)
	}
}

func TestInitElsewhere(t *testing.T) {
	t.Setenv(initVariable, "1")
	Init() // returns: this is not process 1
}
