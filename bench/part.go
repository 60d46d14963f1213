package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// part is this program again, as a process of its own: because its memory and
// processor time are measured, or because it needs a network of its own. It
// answers requests, lines of JSON on its standard input, by lines of JSON on
// its standard output, and ends with its input.
type part struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	ask    *json.Encoder
	answer *json.Decoder
	errors bytes.Buffer
}

// request is what a part is asked.
type request struct {
	Op      string
	Name    string
	Address string
	Streams int
	Bytes   int
	Millis  int
}

// answer is what a part says to a request; which fields it sets depends on the
// request.
type answer struct {
	Error   string
	Missing bool // the error wraps errMissing

	Address     string
	Nanoseconds int64   // of processor time so far
	Anonymous   float64 // bytes of memory that isn't shared with a guest
	Stacks      float64 // of that, stacks of goroutines
	P50, P99    float64 // µs
}

// partVariable is the environment variable that names the part that a process
// is.
const partVariable = "ARCAVM_BENCH_PART"

// parts make, by name, the functions that answer requests. Each has the scope
// of its process.
var parts = map[string]func(*scope) func(request) (answer, error){
	"server":  serverPart,
	"clients": clientsPart,
	"tap":     tapPart,
}

// Init must be called at the start of every program that calls [Run]. If this
// process is a part of a run, Init does its work and exits.
func Init() {
	name := os.Getenv(partVariable)
	if name == "" {
		return
	}
	code := 0
	if err := servePart(name, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "part %s: %v\n", name, err)
		code = 1
	}
	os.Exit(code)
}

// servePart answers requests until in ends.
func servePart(name string, in io.Reader, out io.Writer) error {
	part := parts[name]
	if part == nil {
		return errors.New("no such part")
	}
	s := newScope(context.Background())
	do := part(s)
	err := func() error {
		requests, answers := json.NewDecoder(in), json.NewEncoder(out)
		for {
			var q request
			if err := requests.Decode(&q); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			a, err := do(q)
			if err != nil {
				a.Error, a.Missing = err.Error(), errors.Is(err, errMissing)
			}
			if err := answers.Encode(a); err != nil {
				return err
			}
		}
	}()
	return errors.Join(err, s.close())
}

// part starts a part, which ends with the scope. attributes may be nil.
func (s *scope) part(name string, attributes *syscall.SysProcAttr) (*part, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("this program's file: %w", err)
	}
	p := &part{cmd: exec.CommandContext(s.ctx, self)}
	p.cmd.Env = append(os.Environ(), partVariable+"="+name)
	p.cmd.Stderr = &p.errors
	p.cmd.SysProcAttr = attributes
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start part %s: %w", name, err)
	}
	p.in, p.ask, p.answer = in, json.NewEncoder(in), json.NewDecoder(out)
	s.parts = append(s.parts, p)
	return p, nil
}

// do sends a request and returns its answer.
func (p *part) do(q request) (answer, error) {
	var a answer
	if err := p.ask.Encode(q); err != nil {
		return a, p.gone(err)
	}
	if err := p.answer.Decode(&a); err != nil {
		return a, p.gone(err)
	}
	switch {
	case a.Missing:
		return a, fmt.Errorf("%w%s", errMissing, strings.TrimPrefix(a.Error, errMissing.Error()))
	case a.Error != "":
		return a, errors.New(a.Error)
	}
	return a, nil
}

// gone is the error of a part that doesn't answer any more.
func (p *part) gone(err error) error {
	_ = p.in.Close()
	waited := p.cmd.Wait()
	ended := fmt.Errorf("a part of the measurement has ended: %w", err)
	return errors.Join(ended, waited, errors.New(p.errors.String()))
}

// close ends the part. It returns the error with which the part ended, unless
// do has.
func (p *part) close() error {
	_ = p.in.Close()
	if p.cmd.ProcessState != nil {
		return nil // gone has waited and returned the error
	}
	if err := p.cmd.Wait(); err != nil {
		said := bytes.TrimSpace(p.errors.Bytes())
		return fmt.Errorf("a part of the measurement: %w: %s", err, said)
	}
	return nil
}
