package emulated

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const qemuName = "qemu-system-x86_64"

func findQEMU() (string, error) {
	file, err := exec.LookPath(qemuName)
	if err != nil {
		return "", fmt.Errorf("%w: %s is missing; install it (Debian: apt-get install --no-install-recommends qemu-system-x86)", ErrUnavailable, qemuName)
	}
	return file, nil
}

// The descriptors that QEMU inherits.
const (
	linkFD    = 3
	monitorFD = 4
	filesFD   = 5 // the initramfs
	ramFD     = 6 // of a snapshot
)

// kernelArgs keep boot short and quiet.
// What the kernel prints nevertheless comes on the serial line; a panic there
// restarts at once, which ends QEMU.
// The emulated TSC follows the host's clock, but the kernel would drop it for a
// far slower clock as soon as the emulation stutters.
// To take the lock prefixes out of the kernel's code, as on every machine with
// one processor, takes longer than they do.
const kernelArgs = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr " +
	"noreplace-smp init_on_alloc=0 nohz=off tsc=reliable no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1 " +
	"lsm=landlock cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nokbd random.trust_cpu=on " +
	initVariable + "=1"

// hardware is what a machine consists of. A snapshot fits this hardware alone.
type hardware struct {
	memory  uint64 // in bytes
	network bool
}

func (h hardware) mebibytes() string { return strconv.FormatUint((h.memory+1<<20-1)>>20, 10) + "M" }

// args are QEMU's arguments for the hardware, but for the backends of memory
// (ram) and network, and for the software.
func (h hardware) args() []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// Page tables of five levels would take longer to walk.
		// One processor on one thread: QEMU loses interrupts otherwise.
		"-accel", "tcg", "-cpu", "max,la57=off,erms=off,fsrm=off", "-smp", "1",
		// Interrupt lines for the heartbeat (see startHeartbeat): by default
		// the HPET has the line of the kernel's own timer alone.
		"-global", "hpet.hpet-intcap=0xff0104",
		"-m", h.mebibytes(), "-machine", "memory-backend=ram",
		"-serial", "stdio",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", monitorFD),
		"-mon", "chardev=monitor,mode=control",
		"-chardev", fmt.Sprintf("socket,id=link,fd=%d", linkFD),
		"-device", "virtio-serial-pci,id=ports",
		"-device", "virtserialport,bus=ports.0,chardev=link,name=" + portName,
	}
	if h.network {
		args = append(args, "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	return args
}

// boot adds Linux, to be booted. khz is the frequency of the TSC, 0 if it isn't
// known.
func (h hardware) boot(kernel string, khz uint64) []string {
	line := kernelArgs
	if khz != 0 {
		line += fmt.Sprintf(" tsc_early_khz=%d", khz)
	}
	return append(h.args(), "-kernel", kernel, "-initrd", fmt.Sprintf("/proc/self/fd/%d", filesFD), "-append", line)
}

// ram is memory of the machine's own. It isn't reserved: the host needn't have
// all of it free.
func (h hardware) ram() []string {
	return []string{"-object", "memory-backend-ram,id=ram,reserve=off,size=" + h.mebibytes()}
}

// ramOf is memory that lies in the file of an inherited descriptor. With shared
// "on" the machine changes the file, with "off" a copy of its own.
func (h hardware) ramOf(fd int, shared string) []string {
	return []string{"-object", fmt.Sprintf("memory-backend-file,id=ram,reserve=off,share=%s,mem-path=/proc/self/fd/%d,size=%s", shared, fd, h.mebibytes())}
}

// closedNetwork is a network that leads nowhere.
const closedNetwork = "user,id=net,ipv6=off,restrict=on"

// netdev is the host's side of the network.
func netdev(cfg Config) []string {
	if !cfg.network() {
		return nil
	}
	network := closedNetwork
	if cfg.Outbound {
		network = strings.TrimSuffix(network, ",restrict=on")
	}
	for _, p := range cfg.Publish {
		network += "," + hostForward(p)
	}
	return []string{"-netdev", network}
}

// hostForward sends connections to 127.0.0.1 inside, where both a program that
// listens on all addresses and one that listens on loopback alone get them.
func hostForward(p Port) string {
	return fmt.Sprintf("hostfwd=%s:%s:%d-127.0.0.1:%d", p.Protocol(), p.Host.Addr(), p.Host.Port(), p.Guest)
}

// machine is a QEMU process with its link to init and its monitor.
type machine struct {
	link    net.Conn
	monitor *monitor
	frames  frameWriter
	cmd     *exec.Cmd
	ended   chan struct{} // closed when QEMU is gone
	console tail          // to be read when QEMU is gone
	stderr  tail          // to be read when QEMU is gone
}

// startQEMU starts QEMU; ctx's end kills it. files may be nil, as ram may.
func startQEMU(ctx context.Context, qemu string, files, ram *os.File, args []string) (*machine, error) {
	link, linkChild, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer linkChild.Close()
	control, monitorChild, err := socketPair()
	if err != nil {
		link.Close()
		return nil, err
	}
	defer monitorChild.Close()

	m := &machine{link: link, monitor: &monitor{conn: control}, ended: make(chan struct{})}
	m.frames.w = link
	m.cmd = exec.CommandContext(ctx, qemu, args...)
	m.cmd.Stdout = &m.console
	m.cmd.Stderr = &m.stderr
	m.cmd.ExtraFiles = []*os.File{linkFD - 3: linkChild, monitorFD - 3: monitorChild, filesFD - 3: files, ramFD - 3: ram}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		// QEMU doesn't outlive this process, and a terminal's Ctrl-C is this
		// process's to handle.
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true,
	}
	started := make(chan error)
	go func() {
		// The signal of Pdeathsig comes when the thread ends that started QEMU.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		started <- err
		if err == nil {
			// How it exited says nothing that the link doesn't.
			_ = m.cmd.Wait()
		}
		close(m.ended)
	}()
	if err := <-started; err != nil {
		link.Close()
		control.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return m, nil
}

func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qemu"), os.NewFile(uintptr(fds[1]), "qemu")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// end ends QEMU and frees everything. A machine that fails (not done) ends
// itself; it gets a moment to say why on its console.
func (m *machine) end(done bool) {
	if !done {
		select {
		case <-m.ended:
		case <-time.After(2 * time.Second):
		}
	}
	// It may have ended by itself.
	_ = m.cmd.Process.Kill()
	<-m.ended
	m.link.Close()
	m.monitor.conn.Close()
}

// publish reports the host addresses of the published ports.
func (m *machine) publish(cfg Config) error {
	if len(cfg.Publish) == 0 {
		return nil
	}
	text, err := m.monitor.human("info usernet")
	if err != nil {
		return fmt.Errorf("ask QEMU for the published ports: %w", err)
	}
	for _, line := range forwardLine.FindAllStringSubmatch(text, -1) {
		if line[1] == "TCP" {
			listenFully(m.cmd.Process.Pid, line[2])
		}
	}
	if cfg.OnPublish == nil {
		return nil
	}
	return matchPorts(text, cfg.Publish, cfg.OnPublish)
}

// listenFully gives a listener of QEMU's a backlog of the usual length. QEMU
// asks for 1: the kernel drops what comes beside that, and the peer's kernel
// tries again after a second. Where this process may not reach into QEMU it
// stays so: a kernel before 5.6, a seccomp filter, or
// kernel.yama.ptrace_scope of 2 or 3.
func listenFully(pid int, descriptor string) {
	fd, err := strconv.Atoi(descriptor)
	if err != nil {
		return
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(process)
	listener, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return
	}
	defer unix.Close(listener)
	_ = unix.Listen(listener, backlog)
}

// backlog is at most what net.core.somaxconn allows.
const backlog = 4096

var forwardLine = regexp.MustCompile(`(?m)(TCP|UDP)\[HOST_FORWARD\]\s+(\d+)\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)\s`)

// matchPorts finds each port in what "info usernet" printed.
func matchPorts(text string, ports []Port, found func(Port)) error {
	used := map[string]bool{}
	for _, p := range ports {
		ok := false
		for _, line := range forwardLine.FindAllStringSubmatch(text, -1) {
			host, hostErr := netip.ParseAddrPort(strings.Replace(line[3], "*", "0.0.0.0", 1) + ":" + line[4])
			if hostErr != nil || used[line[0]] || strings.ToLower(line[1]) != p.Protocol() || line[5] != strconv.Itoa(int(p.Guest)) ||
				host.Addr() != p.Host.Addr() || p.Host.Port() != 0 && host.Port() != p.Host.Port() {
				continue
			}
			used[line[0]], ok = true, true
			found(Port{Host: host, Guest: p.Guest, UDP: p.UDP})
			break
		}
		if !ok {
			return fmt.Errorf("find the host port for %s port %d of the emulated machine in what QEMU says: %q", p.Protocol(), p.Guest, text)
		}
	}
	return nil
}
