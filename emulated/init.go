package emulated

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// initVariable tells init from a program that is process 1 of a container. The
// kernel puts what it doesn't know on its command line into init's environment.
const initVariable = "ARCAVM_EMULATED_INIT"

// insideVariable is set for every program that runs in the emulated machine.
const insideVariable = "ARCAVM_EMULATED"

// The files that tell init what to do, as JSON. Where there is no plan it comes
// by the link.
const (
	setupName = "/setup.json"
	planName  = "/emulated.json"
)

// setup is what init prepares whatever is to run.
type setup struct {
	Modules []string // files, in the order to load them
	Network bool     // bring up the virtual network card
}

// plan is what init is to run.
type plan struct {
	Stdin    bool // give the programs a standard input
	Programs []plannedProgram
}

// plannedProgram is a Program. Its texts are bytes: JSON's strings are UTF-8,
// which arguments and names of files need not be.
type plannedProgram struct {
	Path []byte
	Args [][]byte // without the program's name
	Env  [][]byte
	Dir  []byte
	Must bool
}

func allBytes(texts []string) [][]byte {
	all := make([][]byte, len(texts))
	for i, text := range texts {
		all[i] = []byte(text)
	}
	return all
}

func allStrings(texts [][]byte) []string {
	all := make([]string, len(texts))
	for i, text := range texts {
		all[i] = string(text)
	}
	return all
}

// QEMU's user networking: fixed addresses.
const (
	guestAddress = "10.0.2.15/24"
	gateway      = "10.0.2.2"
	nameServer   = "10.0.2.3"
)

// Network is the machine's own network. Its other addresses are QEMU's:
// 10.0.2.2 leads to the loopback addresses of the host.
const Network = "10.0.2.0/24"

// Inside reports whether this process runs in an emulated machine.
func Inside() bool { return os.Getenv(insideVariable) == "1" }

// Init does the work of process 1 if this process is process 1 of an emulated
// machine, and then never returns; else it returns at once. A program that
// calls Run calls Init first thing in main, because its own file is the init of
// the machine that Run starts.
func Init() {
	if os.Getpid() != 1 || os.Getenv(initVariable) != "1" {
		return
	}
	err := serve()
	if err == nil {
		// The host reads the last frame, and then ends QEMU.
		select {}
	}
	fmt.Fprintln(os.Stderr, "emulated init:", err)
	// QEMU runs with -no-reboot: to restart is to end, without ACPI.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintln(os.Stderr, "emulated init: reboot:", err)
	}
	select {}
}

// service is init's work.
type service struct {
	setup   setup
	steps   []Step
	frames  *frameWriter
	clock   *clock
	current target
	chunks  chan []byte // of the programs' standard input
	files   chan []byte // of the archive, where the link brings it
	resumed bool        // not from the start, but in a snapshot of the machine
}

func (s *service) done(name string) { s.steps = append(s.steps, Step{name, time.Now()}) }

// serve prepares the machine and runs the programs. A failure after the link
// is up is reported there as well.
func serve() error {
	s := &service{chunks: make(chan []byte, 1), files: make(chan []byte)}
	s.done("init started")
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.work(); err != nil {
		return errors.Join(err, s.frames.send(frameFailed, []byte(err.Error())))
	}
	return s.frames.send(frameDone, nil)
}

// prepare does what is the same for all runs, until the link is up.
func (s *service) prepare() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := readJSON(setupName, &s.setup); err != nil {
		return err
	}
	for _, file := range s.setup.Modules {
		if err := loadModule(file); err != nil {
			return err
		}
	}
	s.done("modules loaded")
	if err := startHeartbeat(); err != nil {
		return err
	}
	if err := raiseLimits(); err != nil {
		return err
	}
	port, err := openLink()
	if err != nil {
		return err
	}
	s.frames = &frameWriter{w: port}
	s.clock = &clock{frames: s.frames, answers: make(chan hostTime, 1)}
	s.current.times = s.clock.answers
	s.done("link to the host open")
	if err := s.frames.send(frameUp, nil); err != nil {
		return err
	}
	// Only after the first write: a read says EOF until the host's end is open.
	go s.current.receive(port, s.chunks, s.files)
	return nil
}

// work runs the programs.
func (s *service) work() error {
	if _, err := os.Stat(planName); err != nil {
		if err := s.takeFiles(); err != nil {
			return err
		}
	}
	var p plan
	if err := readJSON(planName, &p); err != nil {
		return err
	}
	asked, err := s.clock.ask()
	if err != nil {
		return err
	}
	outside, err := s.clock.set(asked)
	if err != nil {
		return err
	}
	go s.clock.keep()
	if err := bringUpNetwork(s.setup.Network); err != nil {
		return err
	}
	told, err := hear(s.frames)
	if err != nil {
		return err
	}
	s.done("clock and network ready")
	if err := s.ready(outside.Steps); err != nil {
		return err
	}
	return s.runAll(p, told)
}

// takeFiles waits for the files that are passed in, and unpacks them. The
// waiting machine is what a snapshot is made of: what follows happens in each
// machine that is resumed from it.
func (s *service) takeFiles() error {
	arriving := &chunkReader{chunks: s.files}
	seed := make([]byte, seedSize)
	if _, err := io.ReadFull(arriving, seed); err != nil {
		return fmt.Errorf("read the seed: %w", err)
	}
	s.resumed, s.steps = true, nil
	s.done("Linux resumed")
	if err := reseed(seed); err != nil {
		return err
	}
	if err := unpackBelowMounts(arriving); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, arriving); n != 0 || err != nil {
		return fmt.Errorf("%d bytes come after the files: %w", n, err)
	}
	s.done("files unpacked")
	return nil
}

// seedSize is how many random bytes a resumed machine gets.
const seedSize = 64

// ioctlReseed is RNDRESEEDCRNG of <linux/random.h>.
const ioctlReseed = 0x5207

// reseed makes the kernel's random numbers others than those of every machine
// that is resumed from the same snapshot.
func reseed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("seed the random numbers: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(seed); err != nil {
		return fmt.Errorf("seed the random numbers: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), ioctlReseed, 0); err != nil {
		return fmt.Errorf("seed the random numbers: %w", err)
	}
	return nil
}

// belowMounts is where the root folder is seen without what is mounted in it.
const belowMounts = "/.root"

// unpackBelowMounts unpacks where the kernel unpacks an initramfs: what is to
// be in /tmp, say, is hidden by the file system there.
func unpackBelowMounts(r io.Reader) error {
	if err := os.Mkdir(belowMounts, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("/", belowMounts, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the root folder again: %w", err)
	}
	unpacked := make(chan error)
	go func() {
		// The thread ends with the goroutine: it has a root folder of its own.
		runtime.LockOSThread()
		unpacked <- unpackIn(belowMounts, r)
	}()
	if err := <-unpacked; err != nil {
		return err
	}
	if err := unix.Unmount(belowMounts, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the root folder: %w", err)
	}
	return os.Remove(belowMounts)
}

// unpackIn changes the root folder and the umask of this thread.
func unpackIn(root string, r io.Reader) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the root folder: %w", err)
	}
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("change the root folder: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("change the root folder: %w", err)
	}
	unix.Umask(0)
	return unarchive(r, "/", map[uint32]string{initInode: "/" + initName})
}

// chunkReader reads what chunks come; an empty one is the end.
type chunkReader struct {
	chunks <-chan []byte
	rest   []byte
	ended  bool
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if len(c.rest) == 0 && !c.ended {
		c.rest = <-c.chunks
		c.ended = len(c.rest) == 0
	}
	if c.ended {
		return 0, io.EOF
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// ready tells the host that the first program is about to run. outside are the
// host's steps.
func (s *service) ready(outside []Step) error {
	inside, err := s.allSteps()
	if err != nil {
		return err
	}
	if err := writeSteps(append(outside, inside...)); err != nil {
		return err
	}
	return s.frames.sendJSON(frameReady, inside)
}

// runAll runs the programs, one after the other.
func (s *service) runAll(p plan, told *telling) error {
	stdin, err := s.openStdin(p.Stdin)
	if err != nil {
		return err
	}
	for i, program := range p.Programs {
		report := runProgram(s.frames, &s.current, program, stdin)
		report.Program = i
		if err := told.all(); err != nil {
			return err
		}
		if err := s.frames.sendJSON(frameExit, report); err != nil {
			return err
		}
		if program.Must && (report.Code != 0 || report.Error != "") {
			break
		}
	}
	return nil
}

// openStdin returns the programs' standard input, nil if there is none.
func (s *service) openStdin(given bool) (*os.File, error) {
	if !given {
		return nil, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go feed(s.frames, w, s.chunks)
	return r, nil
}

func mountAll() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"devpts", "/dev/pts"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := os.Chmod("/tmp", 0o1777|os.ModeSticky); err != nil {
		return err
	}
	// Programs expect these names, which devtmpfs doesn't make.
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "shm": "/tmp",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func readJSON(name string, v any) error {
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(file), err)
	}
	return nil
}

// openLink finds the virtio-serial port by its name. The driver has probed the
// device by the time its module is loaded, but the device announces its ports
// by messages of its own: the port can come a moment later.
func openLink() (*os.File, error) {
	for range 500 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, name := range names {
			data, _ := os.ReadFile(name)
			if strings.TrimSpace(string(data)) != portName {
				continue
			}
			device := filepath.Join("/dev", filepath.Base(filepath.Dir(name)))
			f, err := os.OpenFile(device, os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("open the link: %w", err)
			}
			return f, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("open the link: no virtio-serial port named %s appeared within 5 s", portName)
}

func bringUpNetwork(card bool) error {
	if err := bringUp("lo"); err != nil {
		return err
	}
	if !card {
		return nil
	}
	// Connections to published ports come to 127.0.0.1 (see hostForward), so
	// that programs may listen on it. By default the kernel drops such packets.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
		return fmt.Errorf("let eth0 carry packets for 127.0.0.1: %w", err)
	}
	address, err := netlink.ParseAddr(guestAddress)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := netlink.AddrAdd(link, address); err != nil {
		return fmt.Errorf("give eth0 its address: %w", err)
	}
	if err := bringUp("eth0"); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
		return fmt.Errorf("route by eth0: %w", err)
	}
	return nil
}

func bringUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// raiseLimits lets programs open many files: the kernel gives init 4,096.
func raiseLimits() error {
	limit := syscall.Rlimit{Cur: 1 << 16, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}

// timerSlack is how late a program's timers may be, in nanoseconds, unless a
// thread asks for better. With the kernel's 50 microseconds Go's scheduler
// looks after its threads so often that it takes a good part of the processor.
const timerSlack = 1_000_000

// startProgram starts a program from a thread whose timer slack it inherits.
func startProgram(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0); err != nil {
		return fmt.Errorf("set the timer slack: %w", err)
	}
	return cmd.Start()
}

// runProgram runs a program to its end. A nil stdin is an empty one.
func runProgram(frames *frameWriter, current *target, p plannedProgram, stdin *os.File) exitReport {
	cmd := exec.CommandContext(context.Background(), string(p.Path), allStrings(p.Args)...)
	cmd.Env = append([]string{"PATH=/bin", "HOME=/tmp", insideVariable + "=1"}, allStrings(p.Env)...)
	cmd.Dir = string(p.Dir)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.Stdout = stream{frames, frameStdout}
	cmd.Stderr = stream{frames, frameStderr}
	// A process left behind may hold the output open for ever.
	cmd.WaitDelay = 2 * time.Second
	start := time.Now()
	if err := startProgram(cmd); err != nil {
		return exitReport{Code: -1, Error: err.Error()}
	}
	current.set(cmd.Process)
	err := cmd.Wait()
	current.set(nil)
	report := exitReport{Code: cmd.ProcessState.ExitCode(), Duration: time.Since(start)}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		report.Signal = int(status.Signal())
		report.Code = 128 + report.Signal
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		report.Error = err.Error()
	}
	return report
}

// target is the program that runs, if any, and gets the signals.
type target struct {
	mu      sync.Mutex
	process *os.Process
	early   []syscall.Signal // for the next program
	times   chan<- hostTime  // gets the host's answers
}

func (t *target) set(p *os.Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.process = p
	if p == nil {
		return
	}
	for _, s := range t.early {
		// A program that has just ended needs no signal.
		_ = p.Signal(s)
	}
	t.early = nil
}

// receive takes what the host sends. chunks, with room for one, get the
// standard input; files the archive, which is unpacked before anything else is
// to come. It waits for nothing but the host and that.
func (t *target) receive(port *os.File, chunks, files chan<- []byte) {
	for {
		kind, payload, err := readFrame(port)
		if err != nil {
			return
		}
		switch {
		case kind == frameFiles:
			files <- payload
		case kind == frameStdin:
			select {
			case chunks <- payload:
			default: // more than the host was asked for
			}
		case kind == frameTime:
			var now hostTime
			if json.Unmarshal(payload, &now) != nil {
				continue
			}
			select {
			case t.times <- now:
			default: // more than it was asked for
			}
		case kind == frameSignal && len(payload) == 1:
			t.signal(syscall.Signal(payload[0]))
		}
	}
}

func (t *target) signal(s syscall.Signal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.process == nil {
		t.early = append(t.early, s)
		return
	}
	// A program that has just ended needs no signal.
	_ = t.process.Signal(s)
}
