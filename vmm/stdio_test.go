package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network/outside"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

func bootStdio(t *testing.T, in io.Reader, out io.Writer, args ...string) *vmmtest.Guest {
	t.Helper()
	return vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "stdio"), Args: args, Input: in, Output: out})
}

// A conversation over pipes, up to the end of the input.
func TestStdioPipes(t *testing.T) {
	t.Parallel()
	in, typed := outside.Pipe(t)
	printed, out := outside.Pipe(t)
	g := bootStdio(t, in, out)
	for _, text := range []string{"hello\n", "a", "Z9 ä\x00\n", strings.Repeat("long line ", 1000)} {
		go io.WriteString(typed, text)
		got := make([]byte, len(text))
		want := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				r -= 'a' - 'A'
			}
			return r
		}, text)
		if _, err := io.ReadFull(printed, got); err != nil || string(got) != want {
			t.Fatalf("got %.40q, %v; want %.40q", got, err, want)
		}
	}
	typed.Close()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	out.Close()
	if rest, err := io.ReadAll(printed); string(rest) != "10014 bytes\n" || err != nil {
		t.Errorf("at the end %q, %v", rest, err)
	}
}

func TestStdioOthers(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	g := bootStdio(t, strings.NewReader("abc"), &out)
	if code, err := g.Wait(); code != 0 || err != nil || out.String() != "ABC3 bytes\n" {
		t.Errorf("the guest ended with %d, %v, and printed %q", code, err, &out)
	}
}

// The second stream is refused; after the first one's end another may open.
func TestStdioSecond(t *testing.T) {
	t.Parallel()
	in, typed := outside.Pipe(t)
	var out bytes.Buffer
	g := bootStdio(t, in, &out, "second")
	g.WaitLog("stdio open")
	if _, err := io.WriteString(typed, "abc"); err != nil {
		t.Fatal(err)
	}
	typed.Close()
	if code, err := g.Wait(); code != 0 || err != nil || out.String() != "ABC3 bytes\n" {
		t.Errorf("the guest ended with %d, %v, and printed %q", code, err, &out)
	}
	for _, want := range []string{fmt.Sprintf("the second: error %d", unix.EBUSY), "after the first: error 0"} {
		if !strings.Contains(g.Log(), want) {
			t.Errorf("the log doesn't say %q:\n%s", want, g.Log())
		}
	}
}

func TestStdioNone(t *testing.T) {
	t.Parallel()
	g := bootStdio(t, nil, nil)
	if code, err := g.Wait(); code != 1 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 1", code, err)
	}
	if want := fmt.Sprintf("stdio: error %d", unix.EOPNOTSUPP); !strings.Contains(g.Log(), want) {
		t.Errorf("the log doesn't say %q:\n%s", want, g.Log())
	}
}

func TestStdioOutputClosed(t *testing.T) {
	t.Parallel()
	in, typed := outside.Pipe(t)
	printed, out := outside.Pipe(t)
	printed.Close()
	g := bootStdio(t, in, out)
	g.WaitLog("stdio open")
	go func() {
		for err := error(nil); err == nil; {
			_, err = io.WriteString(typed, "text")
		}
	}()
	if code, err := g.Wait(); code != 1 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 1", code, err)
	}
	if want := fmt.Sprintf("stdio: error %d", unix.EPIPE); !strings.Contains(g.Log(), want) {
		t.Errorf("the log doesn't say %q:\n%s", want, g.Log())
	}
}

// However the VM ends, an input that doesn't come holds nothing up.
func TestStdioEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(g *vmmtest.Guest){
		"cancel": func(g *vmmtest.Guest) { g.Cancel() },
		"close":  func(g *vmmtest.Guest) { g.VM.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, _ := outside.Pipe(t)
			var calls []bool
			g := vmmtest.Boot(t, vmm.Config{
				Image: vmmtest.Image(t, "stdio"), Input: in, Output: io.Discard,
				OnStdio: func(open bool) { calls = append(calls, open) },
			})
			g.WaitLog("stdio open")
			end(g)
			if _, err := g.Wait(); !errors.Is(err, context.Canceled) && !errors.Is(err, vmm.ErrClosed) {
				t.Errorf("the run ended with %v", err)
			}
			if fmt.Sprint(calls) != "[true false]" {
				t.Errorf("OnStdio was called with %v", calls)
			}
		})
	}
}
