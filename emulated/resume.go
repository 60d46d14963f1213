package emulated

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// resumeLimit is the time from the start of QEMU until a resumed machine is
// ready. After that a machine is booted instead.
const resumeLimit = 30 * time.Second

// What is passed to a resumed machine comes by its link, which is slower than
// an initramfs: beyond maxPassed bytes a boot takes less time. filesRoom is the
// memory in bytes for that and for init.
const (
	maxPassed = 64 << 20
	filesRoom = 256 << 20
)

// errTooLarge is returned for files that fit no resumed machine.
var errTooLarge = errors.New("there is too much to pass in")

// resume runs the programs in a machine that is resumed from a snapshot, which
// it makes if there is none. After an error, unless the programs have begun to
// run (r.ready), the caller boots a machine instead.
func (r *session) resume(ctx context.Context) error {
	h, err := resumable(r.cfg)
	if err != nil {
		return err
	}
	folder := r.cfg.snapshots
	if folder == "" {
		if folder, err = snapshotFolder(); err != nil {
			return err
		}
	}
	key, base, err := snapshotKey(r.cargo, r.qemu, r.kernel, h)
	if err != nil {
		return err
	}
	files, _, err := writeFiles(func(w io.Writer) error {
		return r.cargo.writePassed(base.next(&limited{w, maxPassed}))
	})
	if err != nil {
		return err
	}
	defer files.Close()
	r.done("files packed")
	s, err := r.snapshot(ctx, folder, key, h)
	if err != nil {
		return err
	}
	defer s.file.Close()
	r.step("resuming Linux " + r.result.Kernel + " in QEMU, which takes up to 5 seconds")
	err = r.runResumed(ctx, s, h, files)
	switch {
	case err == nil || r.ready || ctx.Err() != nil:
		return err
	case errors.Is(err, errBroken):
		removeSnapshot(folder, key)
	case errors.Is(err, errOtherTSC), errors.Is(err, errInit):
		// Another host, or other files, may have more luck with it.
	default:
		giveUp(folder, key)
	}
	cause, _, _ := strings.Cut(err.Error(), "\n")
	r.step("the snapshot of the booted machine is of no use: " + cause)
	return err
}

// memoryStep is what the memory of machines that are resumed is a multiple of,
// in bytes, so that runs with other sizes share a snapshot.
const memoryStep = 256 << 20

// resumable is the hardware for a run that is to be resumed.
func resumable(cfg Config) (h hardware, err error) {
	if cfg.Memory > maxSnapshotMemory {
		return h, errTooLarge
	}
	memory, err := memorySize(0, cfg.Memory)
	if err != nil {
		return h, err
	}
	h = hardware{memory: (memory + filesRoom + memoryStep - 1) / memoryStep * memoryStep, network: cfg.network()}
	if h.memory > maxSnapshotMemory {
		return h, errTooLarge
	}
	return h, nil
}

// limited is a writer that takes left bytes, and fails beyond.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errTooLarge
	}
	return l.w.Write(p)
}

// snapshot opens the snapshot, or makes it.
func (r *session) snapshot(ctx context.Context, folder string, key [sha256.Size]byte, h hardware) (*snapshot, error) {
	s, err := openSnapshot(folder, key)
	if err == nil || errors.Is(err, errHopeless) {
		return s, err
	}
	khz := r.ticks.khz()
	if khz == 0 {
		return nil, errOtherTSC
	}
	n, err := makeSnapshot(folder, key, h, khz)
	if err != nil {
		return nil, err
	}
	defer n.close()
	r.step(fmt.Sprintf("booting Linux %s in QEMU, which takes 3 to 30 seconds, and keeping the booted machine in %s for the next times", r.result.Kernel, folder))
	if err := r.fill(ctx, n, h); err != nil {
		if ctx.Err() == nil {
			giveUp(folder, key)
		}
		return nil, err
	}
	r.done("snapshot of the booted machine kept")
	return openSnapshot(folder, key)
}

// fill boots a machine with the base alone, and makes the snapshot of it: what
// this run passes in is no part of it.
func (r *session) fill(ctx context.Context, n *newSnapshot, h hardware) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	initramfs, _, err := writeFiles(func(w io.Writer) error {
		base := newArchive(w)
		return errors.Join(r.cargo.writeBase(base), base.close())
	})
	if err != nil {
		return err
	}
	defer initramfs.Close()
	args := slices.Concat(h.boot(r.kernel.image, n.KHz), h.ramOf(ramFD, "on"))
	if h.network {
		args = append(args, "-netdev", closedNetwork)
	}
	if r.booting.IsZero() {
		r.booting = time.Now()
	}
	m, err := startQEMU(ctx, r.qemu, initramfs, n.file, args)
	if err != nil {
		return err
	}
	kind, payload, err := readFrame(m.link)
	var state []byte
	switch {
	case err != nil:
	case kind != frameUp:
		err = fmt.Errorf("%w: %s", errInit, payload)
	default:
		state, err = m.save()
	}
	m.end(true)
	if err != nil {
		return m.explain(err)
	}
	return n.keep(state)
}

// skipMemory has QEMU's migration leave out memory that lies in a shared file.
// The machine that is resumed needs it as well, to expect no memory.
var skipMemory = map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}

// stateName is QEMU's name for the descriptor that the state passes through.
const stateName = "state"

// save returns the state of the machine's devices; the machine has stopped.
func (m *machine) save() ([]byte, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	err = m.monitor.give(stateName, theirs)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if _, err := m.monitor.do("migrate-set-capabilities", skipMemory); err != nil {
		return nil, err
	}
	if _, err := m.monitor.do("migrate", map[string]string{"uri": "fd:" + stateName}); err != nil {
		return nil, err
	}
	if err := ours.SetDeadline(time.Now().Add(monitorPatience)); err != nil {
		return nil, err
	}
	state, err := io.ReadAll(io.LimitReader(ours, maxState+1))
	if err == nil && len(state) > maxState {
		err = fmt.Errorf("it is larger than %d bytes", maxState)
	}
	if err != nil {
		return nil, fmt.Errorf("read the machine's state: %w", err)
	}
	return state, m.migrated()
}

// migrated waits until QEMU says that all is written: it has closed the socket
// already.
func (m *machine) migrated() error {
	for range 1000 {
		answer, err := m.monitor.do("query-migrate", nil)
		if err != nil {
			return err
		}
		var got struct{ Status string }
		if err := json.Unmarshal(answer, &got); err != nil {
			return err
		}
		switch got.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("QEMU can't write the machine's state: %s", answer)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("QEMU doesn't end writing the machine's state")
}

// errOtherTSC is returned where the TSC isn't as fast as the one that a
// snapshot's kernel knows.
var errOtherTSC = errors.New("the processor's time stamp counter has another frequency")

// runResumed runs the programs in a machine made of s.
func (r *session) runResumed(ctx context.Context, s *snapshot, h hardware, files *os.File) error {
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.AfterFunc(resumeLimit, cancel)
	defer limit.Stop()
	checked := r.check(s)
	m, err := r.start(limited, nil, s.file, slices.Concat(h.args(), h.ramOf(ramFD, "off"), netdev(r.cfg), []string{"-incoming", "defer"}))
	c := <-checked
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	if err = c.err; err == nil {
		err = m.load(c.state)
	}
	if err == nil {
		r.done("snapshot checked and loaded")
		r.signals.attach(m)
		err = m.publish(r.cfg)
	}
	if err == nil {
		sending.Go(func() { m.pass(files) })
		err = m.follow(r, func() { limit.Stop() })
	}
	m.end(err == nil || !r.ready)
	sending.Wait()
	r.result.Console = m.console.String()
	if err != nil && ctx.Err() == nil {
		return m.explain(err)
	}
	return err
}

// checked is a snapshot's state if it is good.
type checked struct {
	state []byte
	err   error
}

// check begins to read all of s, and to measure the TSC's frequency.
func (r *session) check(s *snapshot) <-chan checked {
	result := make(chan checked, 1)
	go func() {
		state, err := s.check()
		if khz := r.ticks.khz(); err == nil && max(khz, s.KHz)-min(khz, s.KHz) > s.KHz/500 {
			err = errOtherTSC
		}
		result <- checked{state, err}
	}()
	return result
}

// load gives the devices their state, and returns when the machine runs. Until
// then nothing may come by the link: the interrupt for it would be lost as soon
// as the interrupt controller got its state.
func (m *machine) load(state []byte) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	err = m.monitor.give(stateName, theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	if _, err := m.monitor.do("migrate-set-capabilities", skipMemory); err != nil {
		return err
	}
	if _, err := m.monitor.do("migrate-incoming", map[string]string{"uri": "fd:" + stateName}); err != nil {
		return err
	}
	if err := ours.SetDeadline(time.Now().Add(monitorPatience)); err != nil {
		return err
	}
	if _, err := ours.Write(state); err != nil {
		return fmt.Errorf("give QEMU the machine's state: %w", err)
	}
	return m.monitor.await("RESUME")
}

// pass sends init what takeFiles waits for. It fails only if the machine is
// off, which the reader of the link finds out as well.
func (m *machine) pass(files *os.File) {
	seed := make([]byte, seedSize)
	_, _ = rand.Read(seed) // it never fails
	if m.frames.send(frameFiles, seed) != nil {
		return
	}
	all := io.NewSectionReader(files, 0, 1<<62)
	buf := make([]byte, maxFrame)
	for {
		n, err := io.ReadFull(all, buf)
		if n > 0 && m.frames.send(frameFiles, buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	_ = m.frames.send(frameFiles, nil)
}
