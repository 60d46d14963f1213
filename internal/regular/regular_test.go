package regular_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/leased"
	"github.com/fix-project/arcavm/internal/regular"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/f", []byte("content"), 0o600), unix.Mkfifo(dir+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	broken := leased.Hold(t, dir+"/f")
	f, info, err := regular.Open(dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	leased.WantBroken(t, broken)
	if info.Size() != 7 {
		t.Errorf("%d bytes", info.Size())
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	fifo, info, err := regular.Open(dir + "/fifo")
	if err != nil || info.Mode().IsRegular() {
		t.Fatal(info, err)
	}
	fifo.Close()
	var path *fs.PathError
	if _, _, err := regular.Open(dir + "/none"); !errors.As(err, &path) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
}

// A lease that isn't given up is waited for no longer than the context lasts.
func TestRetryEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := regular.Retry(ctx, func() error {
		if calls++; calls == 3 {
			cancel()
		}
		return unix.EAGAIN
	})
	if !errors.Is(err, context.Canceled) || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}
