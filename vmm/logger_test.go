package vmm

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// loudRunner serves a VM without a guest, and logs whatever is asked of it.
type loudRunner struct {
	runner
	logger *slog.Logger
}

func (loudRunner) stats(*Stats)        {}
func (loudRunner) stop() (bool, error) { return false, errors.New("out of luck") }

func (a loudRunner) free() error {
	a.logger.Warn("a pipe is left")
	return nil
}

// writerFunc is a function as a writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A Logger may ask the VM that it logs for, even while that ends.
func TestLoggerThatAsks(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*VM) error{
		"Stop":  func(v *VM) error { v.Stop(); return nil },
		"Close": (*VM).Close,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := &VM{life: newLife()}
			var said bytes.Buffer
			v.cfg.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
				v.Stats()
				v.Timing()
				return said.Write(p)
			}), nil))
			v.runner = loudRunner{logger: v.cfg.Logger}
			done := make(chan error, 1)
			go func() { done <- end(v) }()
			select {
			case err := <-done:
				if err != nil || said.Len() == 0 {
					t.Errorf("%v, and %q was logged", err, said.String())
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it never returns")
			}
		})
	}
}
