package emulated

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
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
	linkFD      = 3
	monitorFD   = 4
	initramfsFD = 5
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

func qemuArgs(image string, memory, khz uint64, cfg Config) []string {
	mebibytes := strconv.FormatUint((memory+1<<20-1)>>20, 10) + "M"
	kernelLine := kernelArgs
	if khz != 0 {
		kernelLine += fmt.Sprintf(" tsc_early_khz=%d", khz)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// Page tables of five levels would take longer to walk.
		// One processor on one thread: QEMU loses interrupts otherwise.
		"-accel", "tcg", "-cpu", "max,la57=off,erms=off,fsrm=off", "-smp", "1",
		// Interrupt lines for the heartbeat (see startHeartbeat): this machine's
		// default leaves the HPET none but the one of the kernel's own timer.
		"-global", "hpet.hpet-intcap=0xff0104",
		// Not reserved: the host needn't have all of it free.
		"-m", mebibytes, "-object", "memory-backend-ram,id=ram,reserve=off,size=" + mebibytes, "-machine", "memory-backend=ram",
		"-kernel", image, "-initrd", fmt.Sprintf("/proc/self/fd/%d", initramfsFD), "-append", kernelLine,
		"-serial", "stdio",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", monitorFD),
		"-mon", "chardev=monitor,mode=control",
		"-chardev", fmt.Sprintf("socket,id=link,fd=%d", linkFD),
		"-device", "virtio-serial-pci,id=ports",
		"-device", "virtserialport,bus=ports.0,chardev=link,name=" + portName,
	}
	if !cfg.network() {
		return args
	}
	network := "user,id=net,ipv6=off"
	if !cfg.Outbound {
		network += ",restrict=on"
	}
	for _, p := range cfg.Publish {
		network += "," + hostForward(p)
	}
	return append(args, "-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=")
}

// hostForward sends connections to 127.0.0.1 inside, where both a program that
// listens on all addresses and one that listens on loopback alone get them.
func hostForward(p Port) string {
	return fmt.Sprintf("hostfwd=%s:%s:%d-127.0.0.1:%d", p.Protocol(), p.Host.Addr(), p.Host.Port(), p.Guest)
}

// machine is a QEMU process with its link to init and its monitor.
type machine struct {
	link    net.Conn
	monitor net.Conn
	frames  frameWriter
	cmd     *exec.Cmd
	ended   chan struct{} // closed when QEMU is gone
	console tail          // to be read when QEMU is gone
	stderr  tail          // to be read when QEMU is gone
}

// startQEMU starts QEMU; ctx's end kills it.
func startQEMU(ctx context.Context, qemu string, initramfs *os.File, args []string) (*machine, error) {
	link, linkChild, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer linkChild.Close()
	monitor, monitorChild, err := socketPair()
	if err != nil {
		link.Close()
		return nil, err
	}
	defer monitorChild.Close()

	m := &machine{link: link, monitor: monitor, ended: make(chan struct{})}
	m.frames.w = link
	m.cmd = exec.CommandContext(ctx, qemu, args...)
	m.cmd.Stdout = &m.console
	m.cmd.Stderr = &m.stderr
	m.cmd.ExtraFiles = []*os.File{linkFD - 3: linkChild, monitorFD - 3: monitorChild, initramfsFD - 3: initramfs}
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
		monitor.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return m, nil
}

func socketPair() (net.Conn, *os.File, error) {
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
	return conn, theirs, nil
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
	m.monitor.Close()
}

func (m *machine) forwardSignals(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.ended:
			return
		case s, ok := <-signals:
			if !ok {
				return
			}
			number, ok := s.(syscall.Signal)
			if !ok {
				continue
			}
			if err := m.frames.send(frameSignal, []byte{byte(number)}); err != nil {
				return
			}
		}
	}
}

// publish reports the host addresses of the published ports.
func (m *machine) publish(cfg Config) error {
	if len(cfg.Publish) == 0 {
		return nil
	}
	text, err := m.ask("info usernet")
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

// ask sends one command of the human monitor through QMP
// (docs/interop/qmp-spec.txt) and returns what it prints.
func (m *machine) ask(command string) (string, error) {
	if err := m.monitor.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	answers := bufio.NewScanner(m.monitor)
	answers.Buffer(nil, 1<<20)
	next := func() (json.RawMessage, error) {
		for answers.Scan() {
			var answer struct {
				QMP    json.RawMessage
				Return json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal(answers.Bytes(), &answer); err != nil {
				return nil, err
			}
			switch {
			case answer.Error != nil:
				return nil, errors.New(answer.Error.Desc)
			case answer.QMP != nil:
				return answer.QMP, nil
			case answer.Return != nil:
				return answer.Return, nil
			}
		}
		if err := answers.Err(); err != nil {
			return nil, err
		}
		return nil, errors.New("QEMU closed its monitor")
	}
	if _, err := next(); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(m.monitor, `{"execute": "qmp_capabilities"}`); err != nil {
		return "", err
	}
	if _, err := next(); err != nil {
		return "", err
	}
	line, err := json.Marshal(command)
	if err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(m.monitor, `{"execute": "human-monitor-command", "arguments": {"command-line": %s}}`+"\n", line); err != nil {
		return "", err
	}
	answer, err := next()
	if err != nil {
		return "", err
	}
	var text string
	return text, json.Unmarshal(answer, &text)
}
