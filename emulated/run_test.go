package emulated

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// on is a writer that calls f once the text has been written to it.
type on struct {
	bytes.Buffer
	text string
	f    func()
}

func (o *on) Write(p []byte) (int, error) {
	n, err := o.Buffer.Write(p)
	if o.f != nil && strings.Contains(o.String(), o.text) {
		o.f()
		o.f = nil
	}
	return n, err
}

// runHere runs a machine, or skips the test where there can be none.
func runHere(ctx context.Context, t *testing.T, cfg Config) (Result, error) {
	t.Helper()
	if Inside() {
		t.Skip("a machine in the emulated machine shows nothing more: run this test on the host")
	}
	cfg.Init = self(t)
	if cfg.snapshots == "" {
		folder, err := snapshots()
		must(t, err)
		cfg.snapshots = folder
	}
	for i := range cfg.Programs {
		cfg.Programs[i].Path = cfg.Init
	}
	result, err := Run(ctx, cfg)
	if errors.Is(err, ErrUnavailable) && os.Getenv("ARCAVM_REQUIRE_KVM") == "" {
		t.Skip(err)
	}
	return result, err
}

func program(name string, args ...string) Program {
	return Program{Env: []string{programVariable + "=" + name}, Args: args}
}

func TestRun(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	must(t, os.Mkdir(filepath.Join(data, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(data, "sub", "file"), []byte("from a file\n"), 0o644))

	first := program("exit7", "a", "b c")
	first.Dir = "/some/where"
	last := program("exit7")
	last.Must = true
	signals := make(chan os.Signal, 1)
	stdout := &on{text: "waiting", f: func() { signals <- unix.SIGINT }}
	var stderr bytes.Buffer
	result, err := runHere(t.Context(), t, Config{
		Programs: []Program{first, program("check"), program("signal"), program("die"), last, program("check")},
		Files:    []File{{Name: "/data", Source: data}},
		Stdout:   stdout, Stderr: &stderr, Signals: signals,
	})
	must(t, err)
	var codes []int
	for _, exit := range result.Exits {
		codes = append(codes, exit.Code)
	}
	if diff := cmp.Diff([]int{7, 0, 3, 128 + int(unix.SIGKILL), 7}, codes); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("to stdout: [a b c]\nfrom a file\nwaiting\nto stdout: []\n", stdout.String()); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("to stderr: in /some/where\nto stderr: in /\n", stderr.String()); diff != "" {
		t.Errorf("stderr (-want +got):\n%s", diff)
	}
	if len(result.Steps) < 7 {
		t.Errorf("steps: %v", result.Steps)
	}
	for i, s := range result.Steps {
		if i > 0 && s.At.Before(result.Steps[i-1].At.Add(-time.Second)) || s.At.After(time.Now()) {
			t.Errorf("%s is out of order: %v", s.Name, result.Steps)
		}
	}
	t.Logf("kernel %s, boot %v, total %v", result.Kernel, result.Boot, result.Total)
}

// The programs read the standard input one after the other, and its end. A
// program that doesn't read holds up nothing.
func TestStdin(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	rest := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(append([]byte("a line\n"), rest...))
		w.Close()
		written <- err
	}()
	signals := make(chan os.Signal, 1)
	stdout := &on{text: "waiting", f: func() { signals <- unix.SIGINT }}
	_, err = runHere(t.Context(), t, Config{
		Programs: []Program{program("signal"), program("line"), program("stdin"), program("stdin")},
		Stdin:    r, Stdout: stdout, Signals: signals,
	})
	must(t, err)
	must(t, <-written)
	want := fmt.Sprintf("waiting\na line\n%d bytes, %x\n0 bytes, %x\n", len(rest), sha256.Sum256(rest), sha256.Sum256(nil))
	if diff := cmp.Diff(want, stdout.String()); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
}

// An input that doesn't come holds up nothing.
func TestStdinUnread(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	result, err := runHere(t.Context(), t, Config{Programs: []Program{program("exit7")}, Stdin: r})
	must(t, err)
	if result.Exits[0].Code != 7 {
		t.Errorf("exit code %d", result.Exits[0].Code)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var published []Port
	exchange := func() {
		for _, p := range published {
			if err := exchangeWith(p); err != nil {
				cancel(err)
			}
		}
	}
	local := netip.MustParseAddrPort("127.0.0.1:0")
	_, err := runHere(ctx, t, Config{
		Programs:  []Program{program("serve")},
		Publish:   []Port{{Host: local, Guest: 8080, UDP: true}, {Host: local, Guest: 8080}},
		OnPublish: func(p Port) { published = append(published, p) },
		Outbound:  true,
		Stdout:    &on{text: "listening", f: func() { go exchange() }},
	})
	must(t, err)
	if len(published) != 2 {
		t.Errorf("published: %v", published)
	}
}

// burst is how many connections come at once.
const burst = 100

// Each connection of a burst is made at once. Where the backlog is short, the
// kernel drops some of the first packets, and sends them again after a second.
func TestPublishBurst(t *testing.T) {
	t.Parallel()
	process, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Skipf("no pidfd_open: %v", err)
	}
	defer unix.Close(process)
	copied, err := unix.PidfdGetfd(process, 1, 0)
	if err != nil {
		t.Skipf("no pidfd_getfd, so QEMU's backlog stays: %v", err)
	}
	must(t, unix.Close(copied))
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var published Port
	exchange := func() {
		var all errgroup.Group
		for range burst {
			all.Go(func() error {
				start := time.Now()
				conn, err := net.Dial("tcp", published.Host.String())
				if err != nil {
					return err
				}
				defer conn.Close()
				if took := time.Since(start); took > 900*time.Millisecond {
					return fmt.Errorf("to connect took %v", took)
				}
				if _, err := io.WriteString(conn, "x"); err != nil {
					return err
				}
				if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
					return err
				}
				if got, err := io.ReadAll(conn); err != nil || string(got) != "x" {
					return fmt.Errorf("the echo is %q, %w", got, err)
				}
				return nil
			})
		}
		if err := all.Wait(); err != nil {
			cancel(err)
		}
	}
	_, err = runHere(ctx, t, Config{
		Programs:  []Program{program("burst")},
		Publish:   []Port{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080}},
		OnPublish: func(p Port) { published = p },
		Stdout:    &on{text: "listening", f: func() { go exchange() }},
	})
	must(t, err)
}

// The clock inside is the host's, also if it has become wrong.
func TestClock(t *testing.T) {
	t.Parallel()
	var times []time.Time
	_, err := runHere(t.Context(), t, Config{Programs: []Program{program("clock")}, Stdout: lines(func(line string) {
		inside, err := time.Parse(time.RFC3339Nano, line)
		if off := time.Since(inside).Abs(); err != nil || off > 5*time.Second {
			t.Errorf("the time inside is %q, which is wrong by %v: %v", line, off, err)
		}
		times = append(times, inside)
	})})
	must(t, err)
	if len(times) != 2 {
		t.Errorf("%v", times)
	}
}

// lines is a writer for whole lines.
type lines func(line string)

func (l lines) Write(p []byte) (int, error) {
	l(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func TestTSC(t *testing.T) {
	t.Parallel()
	first := readTicks()
	khz := first.khz()
	again := readTicks().khz()
	if khz == 0 || max(khz, again)-min(khz, again) > khz/500 {
		t.Errorf("%d kHz, and again %d", khz, again)
	}
}

// exchangeWith sends the program "serve" a text, which comes back.
func exchangeWith(p Port) error {
	conn, err := net.Dial(p.Protocol(), p.Host.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	const said = "there and back"
	if _, err := io.WriteString(conn, said); err != nil {
		return err
	}
	got := make([]byte, len(said))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != said {
		return fmt.Errorf("the %s echo is %q, %w", p.Protocol(), got, err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

func TestPublishUDPOfClosedMachine(t *testing.T) {
	t.Parallel()
	_, err := Run(t.Context(), Config{Publish: []Port{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 53, UDP: true}}})
	if err == nil || !strings.Contains(err.Error(), "UDP port 53") {
		t.Errorf("Run returned %v", err)
	}
}

func TestTell(t *testing.T) {
	t.Parallel()
	must(t, Tell([]byte("nobody hears this")))
	signals := make(chan os.Signal, 1)
	var told string
	result, err := runHere(t.Context(), t, Config{
		Programs: []Program{program("tell")},
		Signals:  signals,
		OnTold: func(b []byte) {
			told += string(b)
			if told == "a word" {
				signals <- unix.SIGINT
			}
		},
	})
	must(t, err)
	if told != "a word" || result.Exits[0].Code != 0 {
		t.Errorf("%q was told, exit code %d", told, result.Exits[0].Code)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result, err := runHere(ctx, t, Config{
		Programs: []Program{program("signal")},
		Stdout:   &on{text: "waiting", f: cancel},
	})
	if !errors.Is(err, context.Canceled) || len(result.Exits) != 0 {
		t.Errorf("Run returned %v with %d programs ended", err, len(result.Exits))
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	_, err := runHere(t.Context(), t, Config{Programs: []Program{program("signal")}, Limit: time.Millisecond})
	if !errors.Is(err, ErrLimit) {
		t.Errorf("Run returned %v", err)
	}
}

func TestUnavailable(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Run(t.Context(), Config{Programs: []Program{{Path: "/none"}}})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("without QEMU Run returned %v", err)
	}
}

// Errors say which of the user's variables is wrong, once.
func TestFolders(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	_, err := unnamedFile()
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("without a folder for temporary files: %v", err)
	}
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv(kernelVariable, "")
	if _, err := kernelBelow("/"); err == nil {
		return // this machine's own does without
	}
	_, err = findKernel(t.Context(), "", func(string) {})
	if !errors.Is(err, ErrUnavailable) || strings.Count(err.Error(), "XDG_CACHE_HOME") != 1 || !strings.Contains(err.Error(), kernelVariable) {
		t.Errorf("without a home: %v", err)
	}
}

func TestMemorySize(t *testing.T) {
	t.Parallel()
	without, err := memorySize(10<<20, 0)
	must(t, err)
	if without != 2<<30+30<<20 {
		t.Errorf("%d bytes", without)
	}
	with, err := memorySize(10<<20, 64<<20)
	must(t, err)
	if with != without+64<<20 {
		t.Errorf("%d bytes for programs that need 64 MiB, %d without", with, without)
	}
	most, err := memorySize(10<<20, math.MaxUint64)
	must(t, err)
	if most <= with || most > 1<<50 {
		t.Errorf("%d bytes for all there is", most)
	}
}

// What QEMU 7.2 answers to "info usernet".
const usernet = "Hub -1 (net):\r\n" +
	"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
	"  TCP[HOST_FORWARD]  12       127.0.0.1 34567       127.0.0.1  8080     0     0\r\n" +
	"  TCP[HOST_FORWARD]  13               * 40000       127.0.0.1  8080     0     0\r\n" +
	"  UDP[HOST_FORWARD]  14       127.0.0.1 34569       127.0.0.1  8080     0     0\r\n" +
	"  UDP[236 sec]       14       10.0.2.15 34568        10.0.2.3    53     0     0\r\n"

func TestMatchPorts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		ports []Port
		want  []string
	}{
		{"free port", []Port{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080}}, []string{"127.0.0.1:34567"}},
		{"two hosts, one port", []Port{
			{Host: netip.MustParseAddrPort("0.0.0.0:40000"), Guest: 8080}, {Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080},
		}, []string{"0.0.0.0:40000", "127.0.0.1:34567"}},
		{"UDP", []Port{
			{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080, UDP: true}, {Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080},
		}, []string{"127.0.0.1:34569", "127.0.0.1:34567"}},
		{"other port", []Port{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 81}}, nil},
		{"once each", []Port{
			{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080}, {Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 8080},
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			err := matchPorts(usernet, test.ports, func(p Port) { got = append(got, p.Host.String()) })
			if test.want == nil {
				if err == nil {
					t.Errorf("found %v", got)
				}
				return
			}
			must(t, err)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	var last tail
	for range 3 {
		if _, err := last.Write(bytes.Repeat([]byte{'a'}, tailSize)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(&last, "end"); err != nil {
		t.Fatal(err)
	}
	if s := last.String(); len(s) != tailSize || !strings.HasSuffix(s, "aend") {
		t.Errorf("%d bytes, ending in %q", len(s), s[len(s)-8:])
	}
}
