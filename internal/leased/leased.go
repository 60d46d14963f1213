// Package leased is for tests: a file on which a process has a lease
// (fcntl, F_SETLEASE), as file servers have.
package leased

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Hold takes a write lease on the file at path, which isn't open anywhere, and
// gives it up when an open has asked for that. broken is closed then.
func Hold(t testing.TB, path string) (broken <-chan struct{}) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGIO)
	fd := f.Fd()
	// A child between fork and exec has the file open, too.
	syscall.ForkLock.RLock()
	_, err = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Skipf("no lease on %s: %v", path, err)
	}
	done, released := make(chan struct{}), make(chan struct{})
	var holding sync.WaitGroup
	holding.Go(func() {
		for {
			select {
			case <-asked:
			case <-done:
				return
			}
			// The signal may be about another lease.
			if kind, err := unix.FcntlInt(fd, unix.F_GETLEASE, 0); err != nil || kind == unix.F_WRLCK {
				continue
			}
			// Close gives the lease up: the open that waits goes on.
			f.Close()
			close(released)
			return
		}
	})
	t.Cleanup(func() {
		signal.Stop(asked)
		close(done)
		holding.Wait()
		f.Close()
	})
	return released
}

// WantBroken fails the test if no open has asked for the lease.
func WantBroken(t testing.TB, broken <-chan struct{}) {
	t.Helper()
	select {
	case <-broken:
	default:
		t.Error("the file was opened beside the lease")
	}
}
