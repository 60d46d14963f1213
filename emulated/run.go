package emulated

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnavailable is wrapped by errors that say what this machine lacks to run
// an emulated one, and what to do about it.
var ErrUnavailable = errors.New("emulated KVM is not available")

// ErrProgram is wrapped by errors that say why a program, or this process's own
// file, can't be passed in: the file is missing, is no program, or needs a
// library that is missing.
var ErrProgram = errors.New("the program can't run in the emulated machine")

// ErrLimit is wrapped when Config.Limit or the time to boot ran out.
var ErrLimit = errors.New("out of time")

// DefaultLimit is the time that a whole run may take if Config.Limit is 0.
const DefaultLimit = 15 * time.Minute

// bootLimit is the time from the start of QEMU until init is ready; it takes
// some seconds on a machine that has a processor free.
const bootLimit = 3 * time.Minute

// baseMemory is the machine's memory in bytes, to which the room for its files
// and Config.Memory are added.
const baseMemory = 2 << 30

// Program is a Linux program to run. The shared libraries of a dynamically
// linked one are passed in with it.
type Program struct {
	Path string   // on the host; required
	Name string   // inside, absolute; default "/bin/" and the base name of Path
	Args []string // without the program's name
	Env  []string // added to PATH, HOME, ARCAVM_EMULATED=1
	Dir  string   // working folder inside; made if it is missing; default "/"
	Must bool     // a non-zero exit code ends the run: later programs don't start
}

// File is a host file, or a folder with all that is in it, to pass in.
type File struct {
	Name   string // inside, absolute
	Source string // on the host
	Data   []byte // what a file holds, instead of a Source
}

// Port makes a port of the machine reachable on the host.
type Port struct {
	Host netip.AddrPort // IPv4; port 0 takes a free one
	// Guest is the port inside. Programs may listen on it at 0.0.0.0, [::] or
	// 127.0.0.1; for UDP at 127.0.0.1 alone.
	Guest uint16
	// UDP is for datagrams, instead of TCP. It needs Config.Outbound: QEMU
	// drops the answers else.
	UDP bool
}

// Config says what to run and with what. The zero value of each field but
// Programs is a usable default.
type Config struct {
	Programs []Program // run one after the other
	Files    []File
	Publish  []Port
	// OnPublish, if set, is called for each port in Publish, from Run's
	// goroutine, with the host address that it got; again with another one if a
	// machine can't be resumed and one is booted instead.
	OnPublish func(Port)
	// OnStep, if set, is called from Run's goroutine with a sentence, before a
	// step that may take a second or more, as "booting Linux 6.1". OnReady
	// comes after the last step.
	OnStep func(string)
	// OnReady, if set, is called from Run's goroutine when the machine runs and
	// the first program is about to start.
	OnReady func()
	// OnTold, if set, is called from Run's goroutine with what programs say by
	// Tell.
	OnTold func([]byte)
	// OnExit, if set, is called from Run's goroutine when a program has ended,
	// with its index. Its output has been written to Stdout and Stderr before.
	OnExit func(program int, e Exit)
	// Outbound lets programs connect out through the host. Without it they
	// reach the machine itself alone.
	Outbound bool

	// Stdin is what the programs read, one after the other, as the commands of
	// a shell script do. Default: nothing. Some of it may be read ahead, and
	// never reach a program. Use an *os.File where a Read may wait: a Read of
	// another reader that is under way when Run returns goes on.
	Stdin io.Reader
	// Stdout and Stderr get the programs' output as it comes; default: dropped.
	Stdout, Stderr io.Writer
	// Signals are passed on to the program that runs, or else to the next one.
	Signals <-chan os.Signal

	// Steps are what the caller did before.
	Steps []Step

	// Init is a program that calls Init first thing in main; default: this
	// process's own file.
	Init string
	// Kernel is the file of a Linux kernel, linux-image-….deb or vmlinuz-… with
	// its modules, or a folder with boot and lib/modules. Default: the
	// environment's ARCAVM_EMULATED_KERNEL, or else what was downloaded before,
	// this machine's own kernel, or a download of Debian's, in this order.
	Kernel string
	// Memory is what the programs need beyond the first GiB or so, in bytes.
	// Memory that they don't touch costs the host nothing.
	Memory uint64
	// Limit bounds the whole run; default DefaultLimit.
	Limit time.Duration

	snapshots string // the folder for them, in tests
}

// Exit says how a program ended.
type Exit struct {
	Code     int // 128 + signal if a signal ended it
	Signal   syscall.Signal
	Duration time.Duration // as measured inside
}

// Result says how a run went. Exits has an entry for each program that ran, in
// order; after an error, for each that ended before it.
type Result struct {
	Exits   []Exit
	Steps   []Step        // Config.Steps, and those of the run until the first program
	Boot    time.Duration // from the start of QEMU until the first program could run
	Total   time.Duration // with finding the kernel and packing the files
	Kernel  string        // its version
	Console string        // the last of what the kernel printed; usually empty
}

// Run starts a machine, runs the programs in it, and returns when it is off. It
// returns an error if the machine could not run all of them to an end (or to a
// failed Must); a program that fails is no error. An error wraps ErrUnavailable
// if QEMU or a kernel is missing, ErrProgram if a program can't be passed in,
// ErrLimit if time ran out, and ctx's cause if ctx was done, which ends QEMU at
// once. Run may be called concurrently. The first call may download a kernel
// into the user's cache folder, and keeps a snapshot of the booted machine
// there, which later calls resume.
func Run(ctx context.Context, cfg Config) (Result, error) {
	start := time.Now()
	if err := checkPorts(cfg); err != nil {
		return Result{}, err
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.Limit,
		fmt.Errorf("%w: the emulated machine was to be done within %v", ErrLimit, cfg.Limit))
	defer cancel()

	result, err := runMachine(ctx, cfg)
	result.Total = time.Since(start)
	if err != nil && ctx.Err() != nil {
		// The error is a consequence of QEMU's end; the cause of that counts.
		err = context.Cause(ctx)
	}
	return result, err
}

func runMachine(ctx context.Context, cfg Config) (Result, error) {
	r := &session{cfg: cfg, ticks: readTicks(), step: cfg.OnStep, result: Result{Steps: slices.Clone(cfg.Steps)}}
	if r.step == nil {
		r.step = func(string) {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r.cancel = cancel
	err := r.all(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	r.signals.end()
	return r.result, err
}

// run is the state of Run.
type session struct {
	cfg     Config
	ticks   ticks // at the start
	qemu    string
	kernel  kernel
	cargo   *cargo
	stdin   *stdin
	step    func(string)
	signals *signalRelay
	cancel  context.CancelCauseFunc
	booting time.Time // when the first QEMU was started
	ready   bool      // the programs run: there is no other try
	result  Result
}

func (r *session) done(name string) {
	r.result.Steps = append(r.result.Steps, Step{name, time.Now()})
}

// all resumes a machine or boots one, and runs the programs.
func (r *session) all(ctx context.Context) error {
	r.signals = relaySignals(ctx, r.cfg.Signals)
	if err := r.pack(ctx); err != nil {
		return err
	}
	defer r.cargo.close()
	var err error
	if r.stdin, err = newStdin(r.cfg.Stdin); err != nil {
		return err
	}
	defer r.stdin.end()
	if err = r.resume(ctx); err == nil || r.ready || ctx.Err() != nil {
		return err
	}
	return r.boot(ctx)
}

// pack finds all that a machine takes.
func (r *session) pack(ctx context.Context) (err error) {
	if r.qemu, err = findQEMU(); err != nil {
		return err
	}
	if r.kernel, err = findKernel(ctx, r.cfg.Kernel, r.step); err != nil {
		return err
	}
	r.done("Linux kernel found")
	r.result.Kernel = filepath.Base(r.kernel.modules)
	init := r.cfg.Init
	if init == "" {
		if init, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program's own file: %w", err)
		}
	}
	names := []string{"virtio_pci", "virtio_console", "kvm_amd"}
	if r.cfg.network() {
		names = append(names, "virtio_net")
	}
	modules, err := loadModules(r.kernel.modules, names)
	if err != nil {
		return err
	}
	r.cargo, err = pack(init, modules, r.cfg)
	return err
}

// boot boots a machine with all files in its initramfs.
func (r *session) boot(ctx context.Context) error {
	initramfs, size, err := writeFiles(r.cargo.writeInitramfs)
	if err != nil {
		return err
	}
	defer initramfs.Close()
	r.done("files packed")
	memory, err := memorySize(size, r.cfg.Memory)
	if err != nil {
		return err
	}
	h := hardware{memory: memory, network: r.cfg.network()}
	r.step("booting Linux " + r.result.Kernel + " in QEMU, which takes 3 to 30 seconds")
	args := slices.Concat(h.boot(r.kernel.image, r.ticks.khz()), h.ram(), netdev(r.cfg))
	limit := time.AfterFunc(bootLimit, func() {
		r.cancel(fmt.Errorf("%w: the emulated machine did not boot within %v", ErrLimit, bootLimit))
	})
	defer limit.Stop()
	m, err := r.start(ctx, initramfs, nil, args)
	if err != nil {
		return err
	}
	r.signals.attach(m)
	if err = m.publish(r.cfg); err == nil {
		err = m.follow(r, func() { limit.Stop() })
	}
	m.end(err == nil)
	r.result.Console = m.console.String()
	if err != nil && ctx.Err() == nil {
		return m.explain(err)
	}
	return err
}

// start starts a QEMU.
func (r *session) start(ctx context.Context, files, ram *os.File, args []string) (*machine, error) {
	if r.booting.IsZero() {
		r.booting = time.Now()
	}
	m, err := startQEMU(ctx, r.qemu, files, ram, args)
	if err != nil {
		return nil, err
	}
	r.done("QEMU started")
	return m, nil
}

// begin notes that the programs begin to run.
func (r *session) begin(m *machine, inside []Step) {
	r.ready = true
	r.result.Steps = append(r.result.Steps, inside...)
	r.result.Boot = time.Since(r.booting)
	if r.cfg.OnReady != nil {
		r.cfg.OnReady()
	}
	r.stdin.start(m)
}

// memorySize is the memory of a machine in bytes: initramfs is the size of its
// initramfs, asked is Config.Memory. More than the host has is never used, and
// would cost the kernel inside its page tables.
func memorySize(initramfs int64, asked uint64) (uint64, error) {
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return 0, fmt.Errorf("ask for the size of this machine's memory: %w", err)
	}
	return baseMemory + 3*uint64(initramfs) + min(asked, (host.Totalram+host.Totalswap)*uint64(host.Unit)), nil
}

// writeFiles returns an unnamed file with what write writes, and its size.
func writeFiles(write func(io.Writer) error) (*os.File, int64, error) {
	f, err := unnamedFile()
	if err != nil {
		return nil, 0, err
	}
	err = write(f)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("make the initramfs (TMPDIR says in which folder): %w", err)
	}
	size, sizeErr := f.Seek(0, io.SeekEnd)
	if err := errors.Join(err, sizeErr); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// unnamedFile returns a file whose name is removed already: the file goes with
// its last descriptor, however this process ends.
func unnamedFile() (*os.File, error) {
	f, err := os.CreateTemp("", "arcavm-initramfs-")
	if err != nil {
		return nil, fmt.Errorf("make the initramfs (TMPDIR says in which folder): %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	return f, nil
}

func makeSetup(modules []module, cfg Config) setup {
	s := setup{Network: cfg.network()}
	for _, m := range modules {
		s.Modules = append(s.Modules, "/modules/"+m.name+".ko")
	}
	return s
}

func makePlan(cfg Config) (plan, error) {
	p := plan{Stdin: cfg.Stdin != nil}
	if len(cfg.Programs) == 0 {
		return p, errors.New("there is no program to run")
	}
	for _, program := range cfg.Programs {
		name := program.Name
		if name == "" {
			name = path.Join("/bin", filepath.Base(program.Path))
		}
		p.Programs = append(p.Programs, plannedProgram{
			Path: []byte(path.Join("/", name)),
			Args: allBytes(program.Args),
			Env:  allBytes(program.Env),
			Dir:  []byte(path.Join("/", program.Dir)),
			Must: program.Must,
		})
	}
	return p, nil
}

func (cfg Config) network() bool { return cfg.Outbound || len(cfg.Publish) > 0 }

// errInit is wrapped by errors that init tells of.
var errInit = errors.New("the emulated machine's init")

// follow reads what init sends until everything is done. ready is called when
// the programs are about to run.
func (m *machine) follow(r *session, ready func()) error {
	stdout, stderr := orDiscard(r.cfg.Stdout), orDiscard(r.cfg.Stderr)
	for {
		kind, payload, err := readFrame(m.link)
		if err != nil {
			return err
		}
		switch kind {
		case frameUp:
		case frameAskTime:
			err = m.frames.sendJSON(frameTime, hostTime{time.Now(), r.result.Steps})
		case frameReady:
			var steps []Step
			if err := json.Unmarshal(payload, &steps); err != nil {
				return fmt.Errorf("read how the machine started: %w", err)
			}
			r.begin(m, steps)
			ready()
		case frameStdout:
			_, err = stdout.Write(payload)
		case frameStderr:
			_, err = stderr.Write(payload)
		case frameTaken:
			r.stdin.more()
		case frameTold:
			if r.cfg.OnTold != nil {
				r.cfg.OnTold(payload)
			}
		case frameExit:
			err = r.exited(payload)
		case frameFailed:
			err = fmt.Errorf("%w: %s", errInit, payload)
		case frameDone:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// exited notes how a program ended.
func (r *session) exited(payload []byte) error {
	var report exitReport
	if err := json.Unmarshal(payload, &report); err != nil {
		return fmt.Errorf("read how a program ended: %w", err)
	}
	if report.Error != "" {
		return fmt.Errorf("run %s in the emulated machine: %s", r.cfg.Programs[report.Program].Path, report.Error)
	}
	exit := Exit{Code: report.Code, Signal: syscall.Signal(report.Signal), Duration: report.Duration}
	r.result.Exits = append(r.result.Exits, exit)
	if r.cfg.OnExit != nil {
		r.cfg.OnExit(report.Program, exit)
	}
	return nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// explain adds what QEMU and the kernel printed last to an error.
func (m *machine) explain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the emulated machine went off before its programs ended")
	}
	for _, last := range []struct {
		who  string
		text *tail
	}{{"qemu", &m.stderr}, {"kernel", &m.console}} {
		if text := strings.TrimSpace(last.text.String()); text != "" {
			err = fmt.Errorf("%w\n%s: %s", err, last.who, text)
		}
	}
	return err
}

// tail keeps the last bytes written to it.
type tail struct{ buf bytes.Buffer }

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if extra := t.buf.Len() - tailSize; extra > 0 {
		t.buf.Next(extra)
	}
	return len(p), nil
}

// String may be called after the last Write.
func (t *tail) String() string { return t.buf.String() }
