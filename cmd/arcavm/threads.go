package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/fix-project/arcavm/internal/threads"
	"github.com/fix-project/arcavm/share"
)

const (
	// fewThreads is how many threads any command needs beside those that it
	// begins with, where Go uses one processor.
	fewThreads = 4
	// spareThreads is how many threads a guest needs beside its CPUs and Go's
	// processors: for the runtime itself, signals, and calls that wait.
	spareThreads = 8
)

// checkThreads returns an error where the process may start so few threads that
// Go's runtime would soon end it for want of one. Where there is room, but not
// for a thread on each processor, it makes Go use fewer processors.
func checkThreads() error {
	room, bounded := threads.Left()
	if !bounded {
		return nil
	}
	if room.Left < fewThreads {
		return fewerThreads(room, fewThreads)
	}
	useProcessors(room.Left - fewThreads)
	return nil
}

// checkGuestThreads is checkThreads for a guest with that many CPUs. It bounds
// calls about files, each of which may cost a thread, to the room that is left.
func checkGuestThreads(cpus int) error {
	room, bounded := threads.Left()
	if !bounded {
		return nil
	}
	need := cpus + spareThreads + 1
	if room.Left < need {
		return fewerThreads(room, need)
	}
	useProcessors(room.Left - need + 1)
	share.LimitCalls(max(1, room.Left-cpus-spareThreads-runtime.GOMAXPROCS(0)))
	return nil
}

// useProcessors makes Go use at most that many processors.
func useProcessors(most int) {
	if most < runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(max(1, most))
	}
}

func fewerThreads(room threads.Room, need int) error {
	return &codeError{exitOS, fmt.Errorf("there is room for %d more threads, and arcavm needs %d: %s; allow more", max(0, room.Left), need, room.Bound)}
}

// refuseToStart says, in the form that the flags ask for, why the process ends,
// and returns its exit code. It starts no goroutine: there may be no thread for
// one.
func refuseToStart(err error) int {
	s := streams{out: os.Stdout, err: os.Stderr}
	s.protect()
	o := output{streams: s}
	if cmd, _, failed := newRootCommand(s).Find(os.Args[1:]); failed == nil {
		o.machine = cmd.Flags().Lookup("exit-file") != nil
		o.scan(os.Args[1:], cmd.Flags())
	}
	return o.finish(err)
}

func checkThreadRoom() finding {
	f := finding{verdict: isOK, what: "threads", detail: "no limit below thousands"}
	room, bounded := threads.Left()
	if !bounded {
		return f
	}
	f.detail = fmt.Sprintf("%d more may be started: %s", room.Left, room.Bound)
	if room.Left < 2*spareThreads+share.MaxCalls {
		f.verdict, f.remedy = isLimited, "allow more where guests have many CPUs or files that wait for a slow disk"
	}
	return f
}
