// Package emulated runs Linux programs on emulated hardware that has
// KVM: QEMU without acceleration emulates an AMD processor with SVM, a stock
// Debian kernel boots on it with kvm-amd loaded, and the programs find a
// /dev/kvm with nested paging, SMAP, SMEP, FSGSBASE and 1 GiB pages. It needs no
// privileges and no /dev/kvm of the host's. It is slow and faithful.
//
// The machine has one processor: with several emulator threads QEMU loses
// interrupts now and then.
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
// file, can't be passed in: it isn't there, is none, or lacks a library.
var ErrProgram = errors.New("the program can't run in the emulated machine")

// ErrLimit is wrapped when Config.Limit or the time to boot ran out.
var ErrLimit = errors.New("out of time")

// DefaultLimit is the time that a whole run may take if Config.Limit is 0.
const DefaultLimit = 15 * time.Minute

// bootLimit is the time from the start of QEMU until init is ready; it takes
// some seconds on a machine that has a processor free.
const bootLimit = 3 * time.Minute

// baseMemory is what the machine has beside the space for its files and Config.Memory.
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
	Host  netip.AddrPort // IPv4; port 0 takes a free one
	Guest uint16         // programs may listen on it at 0.0.0.0, [::] or 127.0.0.1; for UDP at 127.0.0.1
	UDP   bool           // else TCP; needs Config.Outbound, since QEMU drops the answers else
}

// Config says what to run and with what. The zero value of each field but
// Programs is a usable default.
type Config struct {
	Programs []Program // run one after the other
	Files    []File
	Publish  []Port
	// OnPublish, if set, is called once per port in Publish, from Run's
	// goroutine, with the host address that it got.
	OnPublish func(Port)
	// OnStep, if set, is called from Run's goroutine with what it begins to do,
	// as "booting Linux 6.1", before what takes a second or more. After the
	// last one comes OnReady.
	OnStep func(string)
	// OnReady, if set, is called from Run's goroutine when the machine has booted
	// and the first program is about to run.
	OnReady func()
	// OnTold, if set, is called with what programs say by Tell, from Run's goroutine.
	OnTold func([]byte)
	// OnExit, if set, is called from Run's goroutine when a program has ended,
	// with its index. All that it wrote has been written to Stdout and Stderr.
	OnExit func(program int, e Exit)
	// Outbound lets programs connect out through the host. Without it they reach
	// nothing but the machine itself.
	Outbound bool

	// Stdin is what the programs read, one after the other, as those of a shell script do. Default: nothing.
	// Some of it may be read without a program ever asking. Use an *os.File where a Read may wait: a Read of
	// any other reader that is under way when Run returns goes on until it returns.
	Stdin          io.Reader
	Stdout, Stderr io.Writer        // of the programs, as it comes; default: dropped
	Signals        <-chan os.Signal // passed on to the program that runs, or else to the next one

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
	// Memory is what the programs need beyond the first GiB or so, in bytes. What
	// they don't touch costs the host nothing.
	Memory uint64
	// Limit bounds the whole run; default DefaultLimit.
	Limit time.Duration
}

// Exit says how a program ended.
type Exit struct {
	Code     int // 128 + signal if a signal ended it
	Signal   syscall.Signal
	Duration time.Duration // as measured inside
}

// Result says how a run went. Exits has an entry for each program that ran, in
// order; after an error they are those that ended before it.
type Result struct {
	Exits   []Exit
	Steps   []Step        // Config.Steps, and those of the run until the first program
	Boot    time.Duration // from the start of QEMU until the first program could run
	Total   time.Duration // with finding the kernel and packing the files
	Kernel  string        // its version
	Console string        // the last of what the kernel printed; usually empty
}

// Run boots a machine, runs the programs in it, and returns when it is off. It
// returns an error if the machine could not run all of them to an end (or to a
// failed Must); a program that fails is no error. An error wraps ErrUnavailable
// if QEMU or a kernel is missing, ErrProgram if a program can't be passed in,
// ErrLimit if time ran out, and ctx's cause if ctx was done, which ends QEMU at
// once. Run may be called concurrently; the first call on a machine may
// download a kernel into the user's cache folder.
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
		// What broke because QEMU was ended is not the news.
		err = context.Cause(ctx)
	}
	return result, err
}

func runMachine(ctx context.Context, cfg Config) (Result, error) {
	counter := readTicks()
	result := Result{Steps: slices.Clone(cfg.Steps)}
	done := func(name string) { result.Steps = append(result.Steps, Step{name, time.Now()}) }
	qemu, err := findQEMU()
	if err != nil {
		return result, err
	}
	step := cfg.OnStep
	if step == nil {
		step = func(string) {}
	}
	kernel, err := findKernel(ctx, cfg.Kernel, step)
	if err != nil {
		return result, err
	}
	done("Linux kernel found")
	result.Kernel = filepath.Base(kernel.modules)
	initramfs, size, err := buildInitramfs(kernel, cfg)
	if err != nil {
		return result, err
	}
	defer initramfs.Close()
	done("files packed")

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	booting := time.AfterFunc(bootLimit, func() {
		cancel(fmt.Errorf("%w: the emulated machine did not boot within %v", ErrLimit, bootLimit))
	})
	defer booting.Stop()
	memory, err := memorySize(size, cfg.Memory)
	if err != nil {
		return result, err
	}
	step("booting Linux " + result.Kernel + " in QEMU, which takes 3 to 30 seconds")
	started := time.Now()
	m, err := startQEMU(ctx, qemu, initramfs, qemuArgs(kernel.image, memory, counter.khz(), cfg))
	if err != nil {
		return result, err
	}
	done("QEMU started")
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	go func() {
		defer close(stopped)
		m.forwardSignals(ctx, cfg.Signals)
	}()
	defer cancel(nil)
	stdin, err := newStdin(cfg.Stdin)
	if err != nil {
		m.end(true)
		return result, err
	}

	err = m.publish(cfg)
	if err == nil {
		err = m.follow(cfg, &result, stdin, func() {
			booting.Stop()
			result.Boot = time.Since(started)
			if cfg.OnReady != nil {
				cfg.OnReady()
			}
			stdin.start(m)
		})
	}
	m.end(err == nil)
	stdin.end()
	result.Console = m.console.String()
	if err != nil && ctx.Err() != nil {
		return result, context.Cause(ctx)
	}
	if err != nil {
		return result, m.explain(err)
	}
	return result, nil
}

// memorySize is that of a machine whose initramfs has a size. More than this
// machine has is never used, and would cost the kernel inside its page tables.
func memorySize(initramfs int64, asked uint64) (uint64, error) {
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return 0, fmt.Errorf("ask for the size of this machine's memory: %w", err)
	}
	return baseMemory + 3*uint64(initramfs) + min(asked, (host.Totalram+host.Totalswap)*uint64(host.Unit)), nil
}

// buildInitramfs returns an unnamed file, and its size.
func buildInitramfs(k kernel, cfg Config) (*os.File, int64, error) {
	init := cfg.Init
	if init == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, 0, fmt.Errorf("find this program's own file: %w", err)
		}
		init = self
	}
	names := []string{"virtio_pci", "virtio_console", "kvm_amd"}
	if cfg.network() {
		names = append(names, "virtio_net")
	}
	modules, err := loadModules(k.modules, names)
	if err != nil {
		return nil, 0, err
	}
	p, err := makePlan(modules, cfg)
	if err != nil {
		return nil, 0, err
	}
	f, err := unnamedFile()
	if err != nil {
		return nil, 0, err
	}
	err = writeInitramfs(f, init, modules, p, cfg)
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

// unnamedFile returns a file that has no name any more, so that nothing stays behind however this process ends.
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

func makePlan(modules []module, cfg Config) (plan, error) {
	p := plan{Network: cfg.network(), Stdin: cfg.Stdin != nil}
	for _, m := range modules {
		p.Modules = append(p.Modules, "/modules/"+m.name+".ko")
	}
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

// follow reads what init sends until everything is done.
func (m *machine) follow(cfg Config, result *Result, stdin *stdin, ready func()) error {
	stdout, stderr := orDiscard(cfg.Stdout), orDiscard(cfg.Stderr)
	for {
		kind, payload, err := readFrame(m.link)
		if err != nil {
			return err
		}
		switch kind {
		case frameAskTime:
			err = m.frames.sendJSON(frameTime, hostTime{time.Now(), result.Steps})
		case frameReady:
			var steps []Step
			if err := json.Unmarshal(payload, &steps); err != nil {
				return fmt.Errorf("read how the machine started: %w", err)
			}
			result.Steps = append(result.Steps, steps...)
			ready()
		case frameStdout:
			_, err = stdout.Write(payload)
		case frameStderr:
			_, err = stderr.Write(payload)
		case frameTaken:
			stdin.more()
		case frameTold:
			if cfg.OnTold != nil {
				cfg.OnTold(payload)
			}
		case frameExit:
			var report exitReport
			if err := json.Unmarshal(payload, &report); err != nil {
				return fmt.Errorf("read how a program ended: %w", err)
			}
			if report.Error != "" {
				return fmt.Errorf("run %s in the emulated machine: %s", cfg.Programs[report.Program].Path, report.Error)
			}
			exit := Exit{Code: report.Code, Signal: syscall.Signal(report.Signal), Duration: report.Duration}
			result.Exits = append(result.Exits, exit)
			if cfg.OnExit != nil {
				cfg.OnExit(report.Program, exit)
			}
		case frameFailed:
			err = fmt.Errorf("the emulated machine's init: %s", payload)
		case frameDone:
			return nil
		}
		if err != nil {
			return err
		}
	}
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

// String may be called when nothing writes any more.
func (t *tail) String() string { return t.buf.String() }
