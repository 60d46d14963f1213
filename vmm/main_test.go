package vmm_test

import (
	"runtime"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// As the command does: the emulated machine has one processor, and a
	// virtual CPU holds it.
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	goleak.VerifyTestMain(m)
}
