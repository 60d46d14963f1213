package vmm_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// patience bounds a hang; it says nothing about speed.
const patience = 5 * time.Minute

// loopbacks are the addresses on which guests listen in these tests.
func loopbacks(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"IPv4": "127.0.0.1:0"}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Logf("no IPv6 on this machine: %v", err)
		return all
	}
	l.Close()
	all["IPv6"] = "[::1]:0"
	return all
}

// content is n bytes that differ from seed to seed.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	r.Read(b)
	return b
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func newClient(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	for family, addr := range loopbacks(t) {
		for _, cpus := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d CPUs", family, cpus), func(t *testing.T) {
				t.Parallel()
				g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "httpd"), Args: []string{addr}, CPUs: cpus})
				base := "http://" + g.Addr().String()
				client := newClient(t)

				page := get(t, client, base+"/", http.StatusOK)
				if !bytes.Contains(page, []byte("<html")) {
					t.Errorf("GET / answers %q", page)
				}
				get(t, client, base+"/nowhere", http.StatusNotFound)
				for _, n := range []int{0, 1, 4095, 4096, 100_000} {
					checkPattern(t, get(t, client, fmt.Sprint(base, "/bytes/", n), http.StatusOK), n)
				}
				for _, n := range []int{0, 1, 200_000} {
					body := content(uint64(n), n)
					if got := post(t, client, base+"/echo", body); !bytes.Equal(got, body) {
						t.Errorf("POST /echo of %d bytes answers %d other bytes", n, len(got))
					}
				}
				body := content(1, 3000)
				sum := sha256.Sum256(body)
				if got := strings.TrimSpace(string(post(t, client, base+"/sha256", body))); got != hex.EncodeToString(sum[:]) {
					t.Errorf("POST /sha256 answers %q, want %x", got, sum)
				}
				g.VM.Stop()
				if code, err := g.Wait(); code != 0 || err != nil {
					t.Errorf("the guest ended with %d, %v", code, err)
				}
			})
		}
	}
}

func get(t *testing.T, client *http.Client, url string, status int) []byte {
	t.Helper()
	resp, err := client.Get(url)
	return answer(t, resp, err, status)
}

func post(t *testing.T, client *http.Client, url string, body []byte) []byte {
	t.Helper()
	resp, err := client.Post(url, "application/octet-stream", bytes.NewReader(body))
	return answer(t, resp, err, http.StatusOK)
}

func answer(t *testing.T, resp *http.Response, err error, status int) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("%s: status %s, want %d", resp.Request.URL, resp.Status, status)
	}
	return b
}

// checkPattern checks the body of GET /bytes/N: byte i is j + 7 * (j / 256),
// modulo 256, where j = i % 4096.
func checkPattern(t *testing.T, b []byte, n int) {
	t.Helper()
	if len(b) != n {
		t.Fatalf("%d bytes came, want %d", len(b), n)
	}
	if i := patternError(b, 0); i >= 0 {
		t.Fatalf("byte %d of %d is wrong", i, n)
	}
}

// A thousand connections at once, all open before the first is served, each
// with its own content.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	connections, size := 1000, 3000
	if testing.Short() {
		connections = 100
	}
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "httpd"), Args: []string{"127.0.0.1:0"}, CPUs: 2})
	addr := g.Addr().String()
	var open sync.WaitGroup
	open.Add(connections)
	var all errgroup.Group
	for i := range connections {
		all.Go(func() error {
			c, err := net.Dial("tcp", addr)
			open.Done()
			if err != nil {
				return err
			}
			defer c.Close()
			open.Wait()
			return echoRequest(c, content(uint64(i), size))
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
}

// echoRequest posts body to /echo on c and checks the answer.
func echoRequest(c net.Conn, body []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := fmt.Fprintf(c, "POST /echo HTTP/1.1\r\nHost: guest\r\nContent-Length: %d\r\n\r\n", len(body))
		if err == nil {
			_, err = c.Write(body)
		}
		sent <- err
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return errors.Join(err, c.Close(), <-sent)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return errors.Join(err, c.Close(), <-sent)
	}
	if !bytes.Equal(got, body) {
		err = fmt.Errorf("%d bytes came back for %d, and not the same", len(got), len(body))
	}
	return errors.Join(err, <-sent)
}

// A large body goes through the guest and back while other connections work.
func TestLargeBodyBesideOthers(t *testing.T) {
	t.Parallel()
	size := 64 << 20
	if testing.Short() {
		size = 1 << 20
	}
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "httpd"), Args: []string{"127.0.0.1:0"}, CPUs: 2})
	addr := g.Addr().String()
	large := make(chan error, 1)
	go func() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			large <- err
			return
		}
		defer c.Close()
		large <- echoRequest(c, content(77, size))
	}()
	client := newClient(t)
	for i := uint64(0); ; i++ {
		body := content(i, 1000)
		if got := post(t, client, "http://"+addr+"/echo", body); !bytes.Equal(got, body) {
			t.Fatalf("request %d beside the large one: other bytes came back", i)
		}
		select {
		case err := <-large:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d requests beside a body of %d MiB", i+1, size>>20)
			return
		default:
		}
	}
}

// A busy stream must not signal per chunk: signals are orders of magnitude
// fewer than chunks.
func TestBulkWithFewSignals(t *testing.T) {
	t.Parallel()
	size := 256 << 20
	if testing.Short() {
		size = 4 << 20
	}
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "httpd"), Args: []string{"127.0.0.1:0"}})
	resp, err := newClient(t).Get(fmt.Sprint("http://", g.Addr(), "/bytes/", size))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 1<<20)
	total := 0
	for {
		n, err := io.ReadFull(resp.Body, buf)
		if i := patternError(buf[:n], total); i >= 0 {
			t.Fatalf("byte %d is wrong", total+i)
		}
		total += n
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if total != size {
		t.Fatalf("%d bytes came, want %d", total, size)
	}
	s := g.VM.Stats()
	out := s.Pipes.Pipes.Read
	t.Logf("%d MiB: %d host reads, %d signals from the guest, %d to it, exits %v, hypercalls %v, %d interrupts",
		size>>20, out.Chunks, out.Wakes, out.Signals, s.Exits, s.Hypercalls, s.Pipes.Doorbells)
	// This ring has room for eight host reads, and each end sleeps about once a
	// lap; BenchmarkBulk shows larger ones. In its first lap the guest fills
	// the ring with bytes, so slowly that the monitor sleeps in between: that
	// is most of a short transfer.
	if signals := out.Wakes + out.Signals; signals > out.Chunks/2 && !testing.Short() {
		t.Errorf("%d signals for %d chunks: one for each chunk, or nearly", signals, out.Chunks)
	}
}

// patternError returns the index of the first byte of b that isn't the
// pattern's from offset on, or -1.
func patternError(b []byte, offset int) int {
	for i := range b {
		j := (offset + i) % 4096
		if b[i] != byte(j+j/256*7) {
			return i
		}
	}
	return -1
}

// The peer's FIN must not end the answer that is still under way.
func TestEchoAfterHalfClose(t *testing.T) {
	t.Parallel()
	for family, addr := range loopbacks(t) {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			g := boot(t, "echo", addr)
			c := dial(t, g.Addr().String())
			body := content(3, 100_000)
			go func() {
				c.Write(body)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes came back for %d, %v", len(got), len(body), err)
			}
		})
	}
}

// A peer that doesn't read stops the guest, which stops the peer: nothing piles
// up between, and other streams go on.
func TestBackpressure(t *testing.T) {
	t.Parallel()
	g := boot(t, "echo", "127.0.0.1:0")
	addr := g.Addr().String()
	stuck := dial(t, addr)
	if err := stuck.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	chunk := content(5, 64<<10)
	var sent int
	for {
		// The kernel's buffers and two rings fill up; then the write makes no
		// progress.
		stuck.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := stuck.Write(chunk)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent > 64<<20 {
			t.Fatal("64 MiB went to a guest that can't get rid of them")
		}
	}
	other := dial(t, addr)
	if _, err := other.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(other, make([]byte, 4)); err != nil {
		t.Fatalf("another stream doesn't work beside a stuck one: %v", err)
	}
	if n, err := io.CopyN(io.Discard, stuck, int64(sent)); err != nil {
		t.Fatalf("%d of %d bytes came back, %v", n, sent, err)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	for family, addr := range loopbacks(t) {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			testConnect(t, addr, "")
		})
	}
	t.Run("by name", func(t *testing.T) {
		t.Parallel()
		testConnect(t, "127.0.0.1:0", "localhost")
	})
}

func testConnect(t *testing.T, addr, name string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	target := l.Addr().String()
	if name != "" {
		_, port, _ := net.SplitHostPort(target)
		target = net.JoinHostPort(name, port)
	}
	g := boot(t, "connect", target, "hello", "from", "the guest")
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c) // until the guest's half-close
	if err != nil || string(got) != "hello from the guest" {
		t.Fatalf("the guest sent %q, %v", got, err)
	}
	if _, err := io.WriteString(c, "and back again"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	if g.Console() != "and back again" {
		t.Errorf("the guest printed %q", g.Console())
	}
}

func TestConnectRefused(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := l.Addr().String()
	l.Close()
	g := boot(t, "connect", target)
	if code, err := g.Wait(); code != 1 || err != nil {
		t.Errorf("the guest ended with %d, %v; want 1", code, err)
	}
	if want := fmt.Sprintf("error %d", unix.ECONNREFUSED); !strings.Contains(g.Log(), want) {
		t.Errorf("the log doesn't say %q:\n%s", want, g.Log())
	}
}

func TestCat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := strings.Repeat("a line of the file\n", 10_000)
	secret := filepath.Join(t.TempDir(), "secret")
	for path, data := range map[string]string{
		filepath.Join(dir, "empty"): "", filepath.Join(dir, "small"): "small", filepath.Join(dir, "large"): text, secret: "secret",
	} {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path, want string
		code             int
		noShare          bool
	}{
		{name: "small", path: "small", want: "small"},
		{name: "leading slash", path: "/small", want: "small"},
		{name: "empty", path: "empty"},
		{name: "large", path: "large", want: text},
		{name: "missing", path: "missing", code: 1},
		{name: "out by dots", path: "../" + filepath.Base(filepath.Dir(secret)) + "/secret", code: 1},
		{name: "out by a link", path: "link", code: 1},
		{name: "out by an absolute path", path: secret, code: 1},
		{name: "a folder", path: ".", code: 1},
		{name: "nothing shared", path: "small", code: 1, noShare: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := vmm.Config{Image: vmmtest.Image(t, "cat"), Args: []string{c.path}}
			if !c.noShare {
				root, err := os.OpenRoot(dir)
				if err != nil {
					t.Fatal(err)
				}
				defer root.Close()
				cfg.Share = vmm.Share{Root: root}
			}
			g := vmmtest.Boot(t, cfg)
			code, err := g.Wait()
			if code != c.code || err != nil || g.Console() != c.want {
				t.Errorf("the guest ended with %d, %v, and printed %d bytes; want %d and %d bytes\n%s", code, err, len(g.Console()), c.code, len(c.want), g.Log())
			}
		})
	}
}

func TestSMP(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 2, 4, 16} {
		t.Run(fmt.Sprint(cpus), func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "smp"), CPUs: cpus})
			if code, err := g.Wait(); code != 0 || err != nil {
				t.Fatalf("the guest ended with %d, %v\n%s", code, err, g.Log())
			}
			for cpu := range cpus {
				if want := fmt.Sprintf("cpu %d reports in", cpu); !strings.Contains(g.Log(), want) {
					t.Errorf("the log doesn't say %q", want)
				}
			}
		})
	}
}

// Peers of a guest that exits see the end of the stream, and of one that is
// ended by force a reset: never silence.
func TestPeersSeeTheEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(*vmmtest.Guest)
		want error
	}{
		{"exit", func(g *vmmtest.Guest) { g.VM.Stop() }, io.EOF},
		{"cancel", (*vmmtest.Guest).Cancel, unix.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := boot(t, "echo", "127.0.0.1:0")
			conn := dial(t, g.Addr().String())
			if _, err := conn.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			c.end(g)
			g.Wait()
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, c.want) {
				t.Errorf("after the guest's end a read returns %v, want %v", err, c.want)
			}
		})
	}
}
