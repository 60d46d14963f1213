package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// stopPatience is how long the VM has to end once it is cancelled, before the process ends without it: a console
// whose reader doesn't read can hold up a virtual CPU.
const stopPatience = time.Second

// signals turns the user's first SIGINT or SIGTERM into a request to the guest, and the second into the end. A closed terminal and SIGQUIT are the end, too.
type signals struct {
	caught chan os.Signal
	done   chan struct{}
	wg     sync.WaitGroup
}

// catchSignals starts to keep signals from ending the process. They wait until attend. From here on a write to a pipe
// that nobody reads fails with EPIPE instead of ending the process: a guest outlives the reader of its console.
func catchSignals() *signals {
	s := &signals{caught: make(chan os.Signal, 4), done: make(chan struct{})}
	signal.Ignore(syscall.SIGPIPE)
	signal.Notify(s.caught, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	// Who started this with nohup wants it to go on.
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(s.caught, syscall.SIGHUP)
	}
	return s
}

// attend calls stop at the first signal, if it is one of asking, and cancel at any other and at the second. A stop that blocks, because nobody reads what
// it prints, doesn't hold up the second. If the process is to end without its caller, restore comes before.
func (s *signals) attend(asking []os.Signal, stop func(os.Signal), cancel context.CancelCauseFunc, restore func()) {
	s.wg.Go(func() {
		caught, ok := s.next()
		if ok && slices.Contains(asking, caught) {
			go stop(caught)
			caught, ok = s.next()
		}
		if !ok {
			return
		}
		code := exitSignal + int(syscall.SIGINT)
		if number, ok := caught.(syscall.Signal); ok {
			code = exitSignal + int(number)
		}
		cancel(&codeError{code: code})
		select {
		case <-s.done:
			return
		case <-s.caught:
		case <-time.After(stopPatience):
		}
		restore()
		os.Exit(code)
	})
}

// next waits for a signal. It reports false when there is nothing to wait for any more.
func (s *signals) next() (os.Signal, bool) {
	select {
	case <-s.done:
		return nil, false
	case caught := <-s.caught:
		return caught, true
	}
}

// release gives signals their usual effect back.
func (s *signals) release() {
	signal.Stop(s.caught)
	signal.Reset(syscall.SIGPIPE)
	close(s.done)
	s.wg.Wait()
}
