package vmm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// rpcBoot boots one of our own guests of the request/response ABI. It skips the
// test where KVM lacks what such kernels need, as many machines' does.
func rpcBoot(t testing.TB, cfg vmm.Config, name string, args ...string) *vmmtest.Guest {
	t.Helper()
	cfg.Image, cfg.Args = vmmtest.Image(t, name), args
	cfg.Memory = 128 << 20
	probe, err := vmm.New(cfg)
	var missing *vmm.MissingError
	if errors.As(err, &missing) {
		t.Skipf("%v; `go run ./cmd/arcavm-emulated test ./vmm` runs this in emulated hardware that has it", err)
	}
	if err == nil {
		if err := probe.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return vmmtest.Boot(t, cfg)
}

// onCPUs runs a test with 1, 2 and 4 CPUs, one after the other: these guests
// spin.
func onCPUs(t *testing.T, test func(t *testing.T, cfg vmm.Config)) {
	t.Helper()
	for _, cpus := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(cpus, " CPUs"), func(t *testing.T) { test(t, vmm.Config{CPUs: cpus}) })
	}
}

func wantCode(t *testing.T, g *vmmtest.Guest, want int) {
	t.Helper()
	if code, err := g.Wait(); code != want || err != nil {
		t.Errorf("the guest ended with %d, %v; want %d", code, err, want)
	}
}

func wantLog(t *testing.T, g *vmmtest.Guest, lines ...string) {
	t.Helper()
	rest := g.Log()
	for _, line := range lines {
		_, after, found := strings.Cut(rest, line)
		if !found {
			t.Errorf("the log doesn't say %q, or not in this place", line)
			continue
		}
		rest = after
	}
}

func TestRPCHello(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-hello", "wörld", "-3")
		wantCode(t, g, 253)
		wantLog(t, g,
			`level=INFO msg="hello, wörld" cpu=0 target=rpc file=rpc/programs/hello.c line=`, "module=rpc::program",
			`level=WARN msg="hello without a place, wörld" cpu=0 target=rpc`+"\n",
			`msg="argument 0: rpc-hello"`, `msg="argument 1: wörld"`, `msg="argument 2: -3"`)
	})
}

func TestRPCEntryState(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-require")
		wantCode(t, g, 0)
		wantLog(t, g, fmt.Sprintf("%d CPUs checked, 0 things missing", cfg.CPUs))
	})
}

// Whatever the CPUs take from the allocator that guest and monitor share comes
// back.
func TestRPCManyCPUs(t *testing.T) {
	rounds := "200"
	if testing.Short() {
		rounds = "20"
	}
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		for _, args := range [][]string{{rounds}, {rounds, "--notify"}} {
			g := rpcBoot(t, cfg, "rpc-smp", args...)
			wantCode(t, g, 0)
			wantLog(t, g, "allocator as before")
			for cpu := range cfg.CPUs {
				wantLog(t, g, fmt.Sprintf("CPU %d: %s rounds", cpu, rounds))
			}
			if s := g.VM.Stats(); len(args) > 1 && s.RPC.Signals == 0 {
				t.Error("a guest that notifies got no interrupt")
			}
		}
	})
}

// rpcShare shares a new folder that holds "old" of 5 bytes.
func rpcShare(t testing.TB, writable bool) (vmm.Share, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return vmm.Share{Root: root, Writable: writable}, dir
}

func TestRPCFiles(t *testing.T) {
	for _, notify := range []string{"", "--notify"} {
		t.Run(notify, func(t *testing.T) {
			share, dir := rpcShare(t, true)
			g := rpcBoot(t, vmm.Config{Share: share, CPUs: 2}, "rpc-file", withNotify(notify,
				"open:r:/old", "read:100", "read:5", "close",
				"open:r:/nothing", "mkdir:/a/b", "mkdir:a/b", "mkdir:old/x",
				"open:wc:a/b/x", "write:abc", "close",
				"open:wa:/a/b/x", "write:def", "close",
				"open:r:a/b/x", "read:20", "start:2", "read:1", "by:-2", "read:2", "end:-1", "read:9", "start:300", "read:1", "by:-1000", "close",
				"open:wct:/large", "fill:300000", "close",
				"open:r:/large", "check:300001", "close",
				"open:wct:a/b/x", "close", "open:r:a/b/x", "read:3", "close",
				"open:r:../../../etc/passwd", "open:r:a")...)
			wantCode(t, g, 0)
			wantLog(t, g,
				"open:r:/old: ok", "read:100: 5 bytes: hello", "read:5: 0 bytes: ", "close: ok",
				"open:r:/nothing: NotFound", "mkdir:/a/b: ok", "mkdir:a/b: ", "mkdir:old/x: ",
				"open:wc:a/b/x: ok", "write:abc: 3", "close: ok",
				"open:wa:/a/b/x: ok", "write:def: 3", "close: ok",
				"read:20: 6 bytes: abcdef", "start:2: 2", "read:1: 1 bytes: c", "by:-2: 1", "read:2: 2 bytes: bc", "end:-1: 5", "read:9: 1 bytes: f",
				"start:300: 300", "read:1: 0 bytes: ", "by:-1000: 300",
				"fill:300000: 300000", "check:300001: 300000", "read:3: 0 bytes: ",
				"open:r:../../../etc/passwd: PermissionDenied", "open:r:a: ")
			large, err := os.ReadFile(filepath.Join(dir, "large"))
			if err != nil || len(large) != 300_000 {
				t.Errorf("the file that the guest wrote has %d bytes, %v", len(large), err)
			}
			for i, b := range large {
				if b != byte(i+7*(i>>8)) {
					t.Fatalf("byte %d is %#x", i, b)
				}
			}
		})
	}
}

// withNotify puts the kernel's own argument, if any, before a program's.
func withNotify(notify string, args ...string) []string {
	if notify == "" {
		return args
	}
	return append([]string{notify}, args...)
}

func TestRPCFilesReadOnly(t *testing.T) {
	share, dir := rpcShare(t, false)
	g := rpcBoot(t, vmm.Config{Share: share}, "rpc-file", "open:r:/old", "read:9", "close", "open:w:/old", "open:wc:/new", "open:wt:/old", "mkdir:/d")
	wantCode(t, g, 0)
	wantLog(t, g, "read:9: 5 bytes: hello", "open:w:/old: PermissionDenied", "open:wc:/new: PermissionDenied", "open:wt:/old: PermissionDenied", "mkdir:/d: PermissionDenied")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
}

func TestRPCFilesNotShared(t *testing.T) {
	g := rpcBoot(t, vmm.Config{}, "rpc-file", "open:r:/etc/passwd", "mkdir:/tmp/x")
	wantCode(t, g, 0)
	for _, line := range []string{"open:r:/etc/passwd: ok", "mkdir:/tmp/x: ok"} {
		if strings.Contains(g.Log(), line) {
			t.Errorf("without a share the log says %q", line)
		}
	}
}

// An HTTP client that closes its connections gets pages.
func TestRPCHTTP(t *testing.T) {
	g := rpcBoot(t, vmm.Config{CPUs: 2}, "rpc-httpd", "127.0.0.1", "0", "5")
	addr := g.Addr().String()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for range 5 {
		if page := get(t, &client, "http://"+addr+"/", http.StatusOK); string(page) != "hello, world" {
			t.Errorf("the page is %q", page)
		}
	}
	wantCode(t, g, 0)
}

// Many connections, one after the other and in parallel, leave the guest's
// allocator as it was: the guest compares.
func TestRPCConnections(t *testing.T) {
	const workers = 32
	for _, c := range []struct {
		image, notify string
		talk          func(addr string, seed int) error
		connections   int
	}{
		{"rpc-httpd", "", rpcRequest, 200},
		{"rpc-httpd", "--notify", rpcRequest, 200},
		{"rpc-echo", "", rpcEcho, 200},
		{"rpc-echo", "--notify", rpcEcho, 200},
	} {
		sequential, parallel, notify := c.connections/2, c.connections/2, c.notify
		if testing.Short() {
			sequential, parallel = 100, 100
		}
		t.Run(c.image+notify, func(t *testing.T) {
			onCPUs(t, func(t *testing.T, cfg vmm.Config) {
				g := rpcBoot(t, cfg, c.image, withNotify(notify, "127.0.0.1", "0", fmt.Sprint(sequential+parallel))...)
				addr := g.Addr().String()
				for i := range sequential {
					if err := c.talk(addr, i); err != nil {
						t.Fatalf("connection %d: %v", i, err)
					}
				}
				var all errgroup.Group
				all.SetLimit(workers)
				for i := range parallel {
					all.Go(func() error { return c.talk(addr, i) })
				}
				if err := all.Wait(); err != nil {
					t.Fatal(err)
				}
				wantCode(t, g, 0)
				wantLog(t, g, fmt.Sprintf("served %d connections; allocator as before", sequential+parallel))
				s := g.VM.Stats().RPC
				if s.Accepted != uint64(sequential+parallel) || s.Broken != 0 {
					t.Errorf("%d connections accepted, %d pipes broken", s.Accepted, s.Broken)
				}
				if notify == "" && s.Signals != 0 {
					t.Errorf("%d interrupts for a guest that never notified", s.Signals)
				}
			})
		})
	}
}

// rpcRequest is one connection with one request, by a client that costs little.
func rpcRequest(addr string, _ int) error {
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: guest\r\n\r\n")); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && !bytes.HasSuffix(b, []byte("hello, world")) {
		err = fmt.Errorf("the answer is %q", b)
	}
	return err
}

// rpcEcho sends some bytes and takes them back. Every eighth connection is
// closed without a word, every other eighth reset.
func rpcEcho(addr string, seed int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	tcp := c.(*net.TCPConn)
	switch seed % 8 {
	case 6:
		return nil
	case 7:
		return tcp.SetLinger(0)
	}
	body := content(uint64(seed), 1+seed%5000)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(body)
		sent <- errors.Join(err, tcp.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("%d bytes came back for %d, or other ones", len(got), len(body))
	}
	return errors.Join(err, <-sent)
}

// The kernels of this ABI convert their time stamp counter by a frequency that
// they take for granted.
func TestRPCTimeStamps(t *testing.T) {
	g := rpcBoot(t, vmm.Config{}, "rpc-clock", "127.0.0.1", "0")
	addr := g.Addr().String()
	stamp := func() (stamp uint64, before, after time.Time) {
		before = time.Now()
		text, err := io.ReadAll(dial(t, addr))
		after = time.Now()
		if err != nil {
			t.Fatal(err)
		}
		if stamp, err = strconv.ParseUint(string(text), 10, 64); err != nil {
			t.Fatal(err)
		}
		return stamp, before, after
	}
	first, earliest, latest := stamp()
	last, before, after := stamp()
	for before.Sub(latest) < 200*time.Millisecond {
		last, before, after = stamp()
	}
	seconds := float64(last-first) / 4_294_967_000
	low, high := 0.95*before.Sub(latest).Seconds(), 1.05*after.Sub(earliest).Seconds()
	right := low <= seconds && seconds <= high
	warned := strings.Contains(g.Log(), "time stamp counter has the host's frequency")
	if right == warned {
		t.Errorf("the guest's counter says %.3f seconds, which were %.3f to %.3f; its user was told that it is wrong: %v", seconds, low, high, warned)
	}
}

// A large transfer crosses the ends of rings.
func TestRPCEchoLarge(t *testing.T) {
	size := 16 << 20
	if testing.Short() {
		size = 1 << 20
	}
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-echo", "127.0.0.1", "0", "1")
		c := dial(t, g.Addr().String())
		body := content(1, size)
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(body)
			sent <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, body) {
			t.Errorf("%d bytes came back, or other ones", len(got))
		}
		wantCode(t, g, 0)
	})
}

func TestRPCConnect(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		b := make([]byte, 4)
		_, err = io.ReadFull(c, b)
		if err == nil {
			_, err = fmt.Fprintf(c, "you said %s", b)
		}
		served <- err
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	g := rpcBoot(t, vmm.Config{}, "rpc-connect", "localhost", port, "ping")
	wantCode(t, g, 0)
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	wantLog(t, g, "sent 4 of 4", "received: you said ping", "received 13 in all")
}

// boundPort returns a port that is in use: its socket is bound but doesn't
// listen, and so refuses connections.
func boundPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(addr.(*unix.SockaddrInet4).Port)
}

func TestRPCConnectRefused(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-connect", "127.0.0.1", boundPort(t), "ping")
		wantCode(t, g, 0)
		wantLog(t, g, "sent 4 of 4", "received 0 in all")
		if s := g.VM.Stats(); s.RPC.ConnectsFailed != 1 {
			t.Errorf("%d connections failed", s.RPC.ConnectsFailed)
		}
	})
}

// No connection arrives at a port that is in use, and the guest can still be
// stopped.
func TestRPCPortInUse(t *testing.T) {
	g := rpcBoot(t, vmm.Config{CPUs: 2}, "rpc-httpd", "127.0.0.1", boundPort(t))
	g.WaitLog("serving on 2 CPUs")
	g.WaitLog("listen failed")
	g.VM.Stop()
	wantCode(t, g, 0)
}

func TestRPCStop(t *testing.T) {
	for _, notify := range []string{"", "--notify"} {
		t.Run(notify, func(t *testing.T) {
			onCPUs(t, func(t *testing.T, cfg vmm.Config) {
				g := rpcBoot(t, cfg, "rpc-httpd", withNotify(notify, "127.0.0.1", "0")...)
				addr := g.Addr().String()
				for i := range 20 {
					if err := rpcRequest(addr, i); err != nil {
						t.Fatal(err)
					}
				}
				g.VM.Stop()
				wantCode(t, g, 0)
			})
		})
	}
}

func TestRPCPanic(t *testing.T) {
	for _, c := range []struct{ how, text string }{
		{"please", "KERNEL PANIC: as you asked\n"},
		{"last", "KERNEL PANIC: at the end\n"},
		{"ud2", "KERNEL PANIC: invalid opcode in inner_function+"},
		{"wild", "KERNEL PANIC: page fault in inner_function+"},
		{"out", "KERNEL PANIC: out of memory: 1099511627776 bytes\n"},
	} {
		t.Run(c.how, func(t *testing.T) {
			g := rpcBoot(t, vmm.Config{CPUs: 2}, "rpc-panic", c.how)
			wantCode(t, g, 1)
			// A call at the very end of its function has that function's name.
			first := ""
			if c.how == "last" {
				first = `0x[0-9a-f]+ - last_function\+\d+\n1: 0x[0-9a-f]+ - inner_function\+\d+\n2: 0x[0-9a-f]+ -`
			}
			frames := regexp.MustCompile(`(?s)backtrace:\n0: ` + first + `.* outer_function\+\d+\n\d+: 0x[0-9a-f]+ - program_main\+\d+\n\d+: 0x[0-9a-f]+ - cpu_start\+\d+\n$`)
			if s := g.Console(); !strings.Contains(s, c.text) || !frames.MatchString(s) {
				t.Errorf("the console says %q", s)
			}
		})
	}
}
