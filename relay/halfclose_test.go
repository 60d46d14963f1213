package relay_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes/pipestest"
)

// end is the part that both ends of a connection have.
type end interface {
	net.Conn
	CloseWrite() error
	CloseRead() error
}

// Each end in turn sends, half-closes, and gets an answer that begins after its
// FIN has arrived.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	for name, roles := range map[string]func(g *pipestest.GuestConn, p *net.TCPConn) (first, second end){
		"guest first": func(g *pipestest.GuestConn, p *net.TCPConn) (end, end) { return g, p },
		"peer first":  func(g *pipestest.GuestConn, p *net.TCPConn) (end, end) { return p, g },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			g, p := m.connected()
			first, second := roles(g, p)
			request, answer := pattern(3, size), pattern(4, size)
			var sending sync.WaitGroup
			sending.Go(func() {
				first.Write(request)
				first.CloseWrite()
			})
			wantAll(t, second, request)
			sending.Wait()
			sending.Go(func() {
				second.Write(answer)
				second.CloseWrite()
			})
			wantAll(t, first, answer)
			sending.Wait()
			g.Close()
			m.wantFree()
			if s := m.server.Stats(); s.ToGuest != size || s.FromGuest != size {
				t.Errorf("%+v", s)
			}
		})
	}
}

// The ends close while bytes of the other are still in ring and socket. None
// are lost.
func TestCloseWithDataInFlight(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	m := start(t, setup{})
	g, p := m.connected()
	there, back := pattern(5, size), pattern(6, size)
	var sending sync.WaitGroup
	sending.Go(func() {
		p.Write(back)
		p.CloseWrite()
	})
	sending.Go(func() {
		g.Write(there)
		g.CloseWrite()
	})
	// No byte is read until the guest's ring is full.
	if _, _, err := g.ReserveRead(64 << 10); err != nil {
		t.Fatal(err)
	}
	g.CommitRead(0)
	wantAll(t, p, there)
	wantAll(t, g, back)
	sending.Wait()
	g.Close()
	m.wantFree()
}

// A peer that answers and closes, while the guest goes on sending, resets. The
// answer arrives nevertheless.
func TestAnswerBeforeReset(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	l, to := hostListener(t, "127.0.0.1:0")
	g, err := m.tryPipe(4096, 4096, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(g, 2, connectTo(to)); err != nil {
		t.Fatal(err)
	}
	p := accepted(t, l)
	answer := pattern(7, 32<<10) // more than the ring holds
	if _, err := p.Write(answer); err != nil {
		t.Fatal(err)
	}
	p.Close()
	for err == nil {
		_, err = g.Write(make([]byte, 1024))
	}
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("writing to a peer that has closed: %v", err)
	}
	wantAll(t, g, answer)
	g.Close()
	m.wantFree()
}

// A guest that reads no more may go on writing. When it has closed its writer,
// too, a peer whose bytes are unread sees a reset.
func TestGuestClosesReader(t *testing.T) {
	t.Parallel()
	m := start(t, setup{})
	g, p := m.connected()
	g.CloseRead()
	sent := pattern(8, 1<<20)
	var sending sync.WaitGroup
	sending.Go(func() { g.Write(sent) })
	wantBytes(t, p, sent)
	sending.Wait()
	if _, err := p.Write([]byte("nobody reads this")); err != nil {
		t.Fatal(err)
	}
	g.CloseWrite()
	m.wantFree()
	if _, err := io.Copy(io.Discard, p); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
	for _, err := p.Write(sent[:1]); !gone(err); _, err = p.Write(sent[:1]) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func gone(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

// stuff writes to c until all buffers on the way are full.
func stuff(t *testing.T, c net.Conn) {
	t.Helper()
	chunk := make([]byte, 1<<20)
	for {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.Write(chunk); errors.Is(err, os.ErrDeadlineExceeded) && n == 0 {
			break
		} else if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	deadline(t, c)
}

// A reset arrives, wherever the relay waits.
func TestReset(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *pipestest.GuestConn, *net.TCPConn){
		"idle": func(*testing.T, *pipestest.GuestConn, *net.TCPConn) {},
		"guest half closed": func(t *testing.T, g *pipestest.GuestConn, p *net.TCPConn) {
			g.CloseWrite()
			wantEOF(t, p)
		},
		"peer half closed": func(t *testing.T, g *pipestest.GuestConn, p *net.TCPConn) {
			p.CloseWrite()
			wantEOF(t, g)
		},
		"peer doesn't read":  func(t *testing.T, g *pipestest.GuestConn, p *net.TCPConn) { stuff(t, g) },
		"guest doesn't read": func(t *testing.T, g *pipestest.GuestConn, p *net.TCPConn) { stuff(t, p) },
		"nobody reads": func(t *testing.T, g *pipestest.GuestConn, p *net.TCPConn) {
			stuff(t, g)
			stuff(t, p)
		},
		"guest doesn't read, half closed": func(t *testing.T, g *pipestest.GuestConn, p *net.TCPConn) {
			stuff(t, p)
			g.CloseWrite()
			wantEOF(t, p)
		},
	} {
		t.Run("guest/"+name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			g, p := m.connected()
			prepare(t, g, p)
			g.Reset(unix.ECONNABORTED)
			m.wantFree()
			if _, err := io.Copy(io.Discard, p); err != nil && !gone(err) {
				t.Errorf("reading: %v", err)
			} else if _, err2 := p.Write([]byte("x")); !gone(err) && !gone(err2) {
				t.Errorf("the peer sees %v, %v", err, err2)
			}
		})
		t.Run("peer/"+name, func(t *testing.T) {
			t.Parallel()
			m := start(t, setup{})
			g, p := m.connected()
			prepare(t, g, p)
			p.SetLinger(0)
			p.Close()
			closed := strings.HasSuffix(name, "half closed") && name != "peer half closed"
			want := unix.ECONNRESET
			if name == "peer half closed" {
				want = unix.EPIPE // the answer was complete
			} else {
				wantReadError(t, g, unix.ECONNRESET)
			}
			// Either ring may be reset first. A relay that waits for bytes
			// finds a reset only when it writes them.
			for _, err := g.Write([]byte("x")); !closed && !errors.Is(err, want); _, err = g.Write([]byte("x")) {
				if err != nil {
					t.Fatalf("writing after a reset: %v, want %v", err, want)
				}
			}
			g.Close()
			m.wantFree()
		})
	}
}

// A guest that doesn't read stops the peer: the relay takes what has room in
// the ring, and not a byte more.
func TestBackpressure(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	m := start(t, setup{})
	g, p := m.connected()
	sent := pattern(9, size)
	wrote := make(chan error, 1)
	go func() {
		_, err := p.Write(sent)
		p.CloseWrite()
		wrote <- err
	}()
	if _, _, err := g.ReserveRead(64 << 10); err != nil {
		t.Fatal(err)
	}
	g.CommitRead(0)
	if n := m.server.Stats().ToGuest; n != 64<<10 {
		t.Errorf("%d bytes relayed into a ring of 65,536", n)
	}
	select {
	case err := <-wrote:
		t.Errorf("the peer has got rid of %d bytes that nobody read: %v", size, err)
	default:
	}
	wantAll(t, g, sent)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	g.Close()
	m.wantFree()
}
