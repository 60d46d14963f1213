package vmm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// Guests that serve for a long time, and guests that come and go, under mixed
// traffic: each byte is what it should be, no wake-up is lost, and the process
// needs no more in the second half than in the first. At the end nothing is
// left. make soak sets ARCAVM_SOAK to how long; without it the test is skipped.
func TestSoak(t *testing.T) {
	text := os.Getenv("ARCAVM_SOAK")
	if text == "" {
		t.Skip("ARCAVM_SOAK isn't set: make soak")
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	s := newSoak(t)
	s.run("warm-up", min(length/10, time.Minute))
	// By then the guests' own spare threads and rings are there.
	idle := s.settle(sample{})
	end := s.run("soak", length)
	if t.Failed() {
		return
	}
	end.compare(t)
	s.settle(idle)
}

// soak is the guests that stay, and what goes through them.
type soak struct {
	t                 *testing.T
	httpd, echo, udp  *vmmtest.Guest
	web               string
	echoAt, udpAt, at netip.AddrPort // at: an echo server outside
	client            *http.Client
	folder            share.Share
	dir               string

	requests, echoes, datagrams, lost, aborts, guests, bytes atomic.Int64
}

func newSoak(t *testing.T) *soak {
	s := &soak{t: t, client: newClient(t), dir: t.TempDir()}
	s.folder = openShare(t, s.dir, true)
	s.httpd, _ = s.boot(2, "httpd", "127.0.0.1:0")
	s.web = "http://" + s.httpd.Addr().String()
	s.echo, _ = s.boot(1, "echo", "127.0.0.1:0")
	s.echoAt = s.echo.Addr()
	var bound <-chan netip.AddrPort
	s.udp, bound = s.boot(1, "udp", "echo", "127.0.0.1:0")
	select {
	case s.udpAt = <-bound:
	case <-time.After(patience):
		t.Fatal("the guest binds no socket")
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.at = l.Addr().(*net.TCPAddr).AddrPort()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return s
}

var boundLine = regexp.MustCompile(`bound to ([0-9.:]+)`)

// boot starts a guest that stays. Of its log only what matters is kept; bound
// gets the address of a datagram socket.
func (s *soak) boot(cpus int, name string, args ...string) (g *vmmtest.Guest, bound <-chan netip.AddrPort) {
	found := make(chan netip.AddrPort, 1)
	log := writerFunc(func(p []byte) (int, error) {
		if m := boundLine.FindSubmatch(p); m != nil {
			if at, err := netip.ParseAddrPort(string(m[1])); err == nil {
				found <- at
			}
		}
		if bytes.Contains(p, []byte("level=WARN")) || bytes.Contains(p, []byte("level=ERROR")) {
			s.t.Errorf("%s: %s", name, p)
		}
		return len(p), nil
	})
	g = vmmtest.Boot(s.t, vmm.Config{
		Image: vmmtest.Image(s.t, name), Args: args, CPUs: cpus, Console: io.Discard,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	return g, found
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// run has all workers work for a while, and prints a line a minute.
func (s *soak) run(name string, length time.Duration) *report {
	ctx, cancel := context.WithTimeout(s.t.Context(), length)
	defer cancel()
	var workers sync.WaitGroup
	for i, work := range []func(*rand.Rand) error{
		s.download, s.download, s.upload, s.upload, s.hash, s.talk, s.talk, s.talk, s.datagram, s.abort, s.abort, s.connectOut, s.files,
	} {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			for ctx.Err() == nil && !s.t.Failed() {
				if err := work(random); err != nil {
					s.t.Errorf("worker %d: %v", i, err)
				}
			}
		})
	}
	r := &report{begin: time.Now(), length: length}
	ticks := time.NewTicker(min(5*time.Second, length/20))
	defer ticks.Stop()
	line := time.NewTicker(min(time.Minute, length/3))
	defer line.Stop()
	for ctx.Err() == nil {
		select {
		case <-ticks.C:
			r.add(s.sample())
		case <-line.C:
			s.t.Log(name, time.Since(r.begin).Round(time.Second), s)
		case <-ctx.Done():
		}
	}
	workers.Wait()
	s.client.CloseIdleConnections()
	return r
}

func (s *soak) String() string {
	return fmt.Sprintf("%d requests, %d echoes, %d datagrams (%d lost), %d aborts, %d guests, %d MiB; %v", s.requests.Load(), s.echoes.Load(), s.datagrams.Load(),
		s.lost.Load(), s.aborts.Load(), s.guests.Load(), s.bytes.Load()>>20, s.sample())
}

// download gets a body and checks it.
func (s *soak) download(random *rand.Rand) error {
	n := random.IntN(1 << (10 + random.IntN(14)))
	resp, err := s.client.Get(fmt.Sprint(s.web, "/bytes/", n))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || len(b) != n || patternError(b, 0) >= 0 {
		return errors.Join(err, fmt.Errorf("GET of %d bytes: %d bytes came, or others", n, len(b)))
	}
	s.requests.Add(1)
	s.bytes.Add(int64(n))
	return nil
}

// upload sends a body and gets it back.
func (s *soak) upload(random *rand.Rand) error {
	sent := content(random.Uint64(), random.IntN(1<<(10+random.IntN(12))))
	got, err := s.post("/echo", sent)
	if err != nil || !bytes.Equal(got, sent) {
		return fmt.Errorf("POST of %d bytes: %d bytes came back, %w, or they differ", len(sent), len(got), err)
	}
	s.bytes.Add(2 * int64(len(sent)))
	return nil
}

// hash has the guest say what it got.
func (s *soak) hash(random *rand.Rand) error {
	sent := content(random.Uint64(), random.IntN(1<<(8+random.IntN(7))))
	sum := sha256.Sum256(sent)
	got, err := s.post("/sha256", sent)
	if err != nil || strings.TrimSpace(string(got)) != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("POST of %d bytes: %q, %w, want %x", len(sent), got, err, sum)
	}
	s.bytes.Add(int64(len(sent)))
	return nil
}

func (s *soak) post(path string, body []byte) ([]byte, error) {
	resp, err := s.client.Post(s.web+path, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	s.requests.Add(1)
	return io.ReadAll(resp.Body)
}

// talk has bytes echoed, half-closes, and reads to the end.
func (s *soak) talk(random *rand.Rand) error {
	c, err := s.dial(s.echoAt)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := content(random.Uint64(), random.IntN(1<<(1+random.IntN(20))))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-wrote); err != nil || !bytes.Equal(got, sent) {
		return fmt.Errorf("of %d bytes %d came back, %w, or they differ", len(sent), len(got), err)
	}
	s.echoes.Add(1)
	s.bytes.Add(2 * int64(len(sent)))
	return nil
}

func (s *soak) dial(to netip.AddrPort) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(patience))
}

// datagram has some datagrams echoed. A datagram may get lost, as on any
// network; a wrong one may not come.
func (s *soak) datagram(random *rand.Rand) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.udpAt))
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 1<<16)
	for range 20 {
		sent := content(random.Uint64(), random.IntN(9000))
		if _, err := c.Write(sent); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.lost.Add(1)
			return nil
		}
		if err != nil || !bytes.Equal(buf[:n], sent) {
			return fmt.Errorf("a datagram of %d bytes came back as %d, %w, or they differ", len(sent), n, err)
		}
		s.datagrams.Add(1)
		s.bytes.Add(2 * int64(n))
	}
	return nil
}

// abort resets a connection in the midst of something.
func (s *soak) abort(random *rand.Rand) error {
	to := s.echoAt
	first := content(random.Uint64(), random.IntN(100_000))
	if random.IntN(2) == 0 {
		to = s.httpdAt()
		first = []byte("GET /bytes/1000000 HTTP/1.1\r\nHost: x\r\n\r\n")[:random.IntN(41)]
	}
	c, err := s.dial(to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Duration(random.IntN(20)) * time.Millisecond)); err != nil {
		return err
	}
	_, _ = c.Write(first)
	_, _ = io.CopyN(io.Discard, c, random.Int64N(200_000))
	if random.IntN(3) != 0 {
		_ = c.SetLinger(0)
	}
	s.aborts.Add(1)
	return nil
}

func (s *soak) httpdAt() netip.AddrPort {
	return netip.MustParseAddrPort(strings.TrimPrefix(s.web, "http://"))
}

// connectOut boots a guest that connects to a server outside.
func (s *soak) connectOut(random *rand.Rand) error {
	text := hex.EncodeToString(content(random.Uint64(), 1+random.IntN(2000)))
	return s.program("connect", []string{s.at.String(), text}, text)
}

// files boots a guest that writes a file and reads it.
func (s *soak) files(random *rand.Rand) error {
	name := "f" + strconv.Itoa(random.IntN(10))
	text := hex.EncodeToString(content(random.Uint64(), 1+random.IntN(2000)))
	args := []string{"write", name, text, ",", "append", name, text, ",", "read", name}
	if err := s.program("files", args, text+text); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil || string(b) != text+text {
		return fmt.Errorf("the file has %d bytes, %w, want %d, or they differ", len(b), err, 2*len(text))
	}
	return nil
}

// program runs a guest to its end.
func (s *soak) program(name string, args []string, console string) error {
	var out, log bytes.Buffer
	vm, err := vmm.New(vmm.Config{
		Image: vmmtest.Image(s.t, name), Args: args, Memory: 64 << 20, Share: s.folder, Network: network.Host{}, Console: &out,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	code, err := vm.Run(ctx)
	p := vm.Stats().Pipes
	if err != nil || code != 0 || out.String() != console || p.Rescued+p.Forgotten != 0 {
		return fmt.Errorf("%s ended with %d, %w, %d lost wake-ups, and printed %d bytes, want %d; its log: %s", name, code, err, p.Rescued+p.Forgotten, out.Len(), len(console), &log)
	}
	s.guests.Add(1)
	s.bytes.Add(2 * int64(len(console)))
	return nil
}

// sample is what the process and its guests need at a time.
type sample struct {
	rss, ring                     int64 // in bytes
	descriptors, goroutines, open int
	lost, late                    uint64
}

func (x sample) String() string {
	return fmt.Sprintf("RSS %d MiB, rings %d KiB, %d descriptors, %d goroutines, %d pipes, %d wake-ups lost, %d late", x.rss>>20, x.ring>>10, x.descriptors, x.goroutines, x.open, x.lost, x.late)
}

func (s *soak) sample() (x sample) {
	for _, g := range []*vmmtest.Guest{s.httpd, s.echo, s.udp} {
		x.add(g.VM.Stats().Pipes)
	}
	x.goroutines = runtime.NumGoroutine()
	x.descriptors = openDescriptors(s.t)
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident int64
		if _, err := fmt.Sscan(string(b), &size, &resident); err == nil {
			x.rss = resident * int64(unix.Getpagesize())
		}
	}
	return x
}

func (x *sample) add(p pipes.Stats) {
	x.ring += p.RingBytes
	x.open += p.Open
	x.lost += p.Rescued + p.Forgotten
	x.late += p.Late
}

// settle waits until no more is in use than before. If before is nothing, it
// waits until nothing changes any more.
func (s *soak) settle(before sample) sample {
	late := time.After(patience)
	last, calm := s.sample(), 0
	for {
		select {
		case <-late:
			s.t.Fatalf("after the end: %v; before: %v", last, before)
		case <-time.After(100 * time.Millisecond):
		}
		now := s.sample()
		same := now.open == last.open && now.ring == last.ring && now.goroutines == last.goroutines && now.descriptors == last.descriptors
		if last = now; !same {
			calm = 0
			continue
		}
		calm++
		back := now.open <= before.open && now.ring <= before.ring && now.goroutines <= before.goroutines && now.descriptors <= before.descriptors
		if calm >= 10 && (before == sample{} || back) {
			s.t.Log("idle", now)
			return now
		}
	}
}

// report keeps the largest of what was sampled in each half.
type report struct {
	begin  time.Time
	length time.Duration
	halves [2]sample
}

func (r *report) add(x sample) {
	h := &r.halves[0]
	if time.Since(r.begin) > r.length/2 {
		h = &r.halves[1]
	}
	h.rss, h.ring = max(h.rss, x.rss), max(h.ring, x.ring)
	h.descriptors, h.goroutines, h.open = max(h.descriptors, x.descriptors), max(h.goroutines, x.goroutines), max(h.open, x.open)
	h.lost, h.late = max(h.lost, x.lost), max(h.late, x.late)
}

// compare allows the second half as much as the first, and what chance adds:
// which connections are open at once, and when the garbage collector runs.
func (r *report) compare(t *testing.T) {
	first, second := r.halves[0], r.halves[1]
	t.Logf("largest in the first half: %v", first)
	t.Logf("largest in the second half: %v", second)
	for _, c := range []struct {
		what          string
		first, second int64
		slack         int64
	}{
		{"bytes of RSS", first.rss, second.rss, first.rss/10 + 16<<20},
		{"bytes of rings", first.ring, second.ring, first.ring/2 + 1<<20},
		{"descriptors", int64(first.descriptors), int64(second.descriptors), 32},
		{"goroutines", int64(first.goroutines), int64(second.goroutines), 64},
		{"pipes", int64(first.open), int64(second.open), 32},
	} {
		if c.second > c.first+c.slack {
			t.Errorf("%d %s in the second half, %d in the first", c.second, c.what, c.first)
		}
	}
	if second.lost != 0 {
		t.Errorf("%d wake-ups were lost", second.lost)
	}
}
