package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fix-project/arcavm/vmm"
)

// stopPatience is how long a cancelled machine has to end before the process
// ends without it: a console whose reader reads nothing can hold up a virtual
// CPU.
const stopPatience = time.Second

// signals turns the user's first SIGINT or SIGTERM into a request to the guest,
// and the second into the end. A closed terminal and SIGQUIT are the end, too.
type signals struct {
	caught chan os.Signal
	done   chan struct{}
	wg     sync.WaitGroup
}

// catchSignals keeps signals from ending the process. Those that come wait for
// attend. A write to a pipe without a reader fails with EPIPE, too, instead of
// ending the process: a guest outlives the reader of its console.
func catchSignals() *signals {
	s := &signals{caught: make(chan os.Signal, 4), done: make(chan struct{})}
	signal.Ignore(syscall.SIGPIPE)
	signal.Notify(s.caught, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	// It is ignored where nohup started the process, which is to go on then.
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(s.caught, syscall.SIGHUP)
	}
	return s
}

// ending are the steps of attend on the way to the end.
type ending struct {
	// stop asks the guest to stop. It may block: the next signal is attended to
	// all the same.
	stop func(os.Signal)
	// look finds out what the guest is doing, for the user; nil if there is
	// nothing to tell.
	look func(os.Signal) *vmm.Report
	// cancel ends the guest.
	cancel context.CancelCauseFunc
	// abandon is called with the reason before the process ends while the
	// machine still runs.
	abandon func(error)
}

// attend asks the guest to stop at the first signal, if it is one of asking,
// and ends it at any other and at the second. A guest that didn't stop when
// asked, or that SIGQUIT ends, is looked at before; one more signal ends the
// wait for that.
//
//	signal                   then
//	one of asking            stop, and on to the next signal
//	the next, but SIGHUP     look, cancel
//	SIGQUIT                  look, cancel
//	any other                cancel
func (s *signals) attend(asking []os.Signal, do ending) {
	s.wg.Go(func() {
		caught, ok := s.next()
		asked := ok && slices.Contains(asking, caught)
		if asked {
			go do.stop(caught)
			caught, ok = s.next()
		}
		if !ok {
			return
		}
		end := &signalError{signal: syscall.SIGINT}
		if number, ok := caught.(syscall.Signal); ok {
			end.signal = number
		}
		if caught == syscall.SIGQUIT || asked && caught != syscall.SIGHUP {
			end.guest = s.look(caught, do.look)
		}
		do.cancel(end)
		select {
		case <-s.done:
			return
		case <-s.caught:
		case <-time.After(stopPatience):
		}
		do.abandon(end)
		os.Exit(exitSignal + int(end.signal))
	})
}

// look calls look and returns its result, or nil if another signal or the end
// comes first.
func (s *signals) look(caught os.Signal, look func(os.Signal) *vmm.Report) *vmm.Report {
	found := make(chan *vmm.Report, 1)
	go func() { found <- look(caught) }()
	select {
	case r := <-found:
		return r
	case <-s.caught:
	case <-s.done:
	}
	return nil
}

// next waits for a signal. It reports false after release.
func (s *signals) next() (os.Signal, bool) {
	select {
	case <-s.done:
		return nil, false
	case caught := <-s.caught:
		return caught, true
	}
}

// release gives signals their usual effect back, and ends attend.
func (s *signals) release() {
	signal.Stop(s.caught)
	signal.Reset(syscall.SIGPIPE)
	close(s.done)
	s.wg.Wait()
}
