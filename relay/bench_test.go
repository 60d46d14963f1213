package relay_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/wire"
)

const mebibyte = 1 << 20

// bulk moves b.N MiB from w to r in chunks.
func bulk(b *testing.B, w io.Writer, r io.Reader, chunk int) {
	b.Helper()
	b.SetBytes(mebibyte)
	b.ReportAllocs()
	out, in := make([]byte, chunk), make([]byte, chunk)
	sent := make(chan error, 1)
	b.ResetTimer()
	before := processorTime(b)
	go func() {
		for range b.N * (mebibyte / chunk) {
			if _, err := w.Write(out); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for left := b.N * mebibyte; left > 0; {
		n, err := r.Read(in)
		if err != nil {
			b.Fatal(err)
		}
		left -= n
	}
	b.StopTimer()
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/MiB")
	if err := <-sent; err != nil {
		b.Fatal(err)
	}
}

// processorTime is the processor time that this process has used. Unlike the
// clock's, it doesn't depend on what else the machine does.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// plain is a TCP connection with nothing in between, to compare with.
func plain(b *testing.B) (x, y *net.TCPConn) {
	b.Helper()
	l, to := hostListener(b, "127.0.0.1:0")
	x = dialed(b, to)
	return x, accepted(b, l)
}

// mover is a guest's end that moves cursors and copies nothing, so that only
// the relay is measured.
type mover struct{ *pipestest.GuestConn }

func (m mover) Read(b []byte) (int, error) {
	x, y, err := m.ReserveRead(1)
	if err != nil {
		return 0, err
	}
	n := min(len(b), len(x)+len(y))
	m.CommitRead(n)
	return n, nil
}

func (m mover) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		x, y, err := m.ReserveWrite(1)
		if err != nil {
			return n, err
		}
		k := min(len(b)-n, len(x)+len(y))
		m.CommitWrite(k)
		n += k
	}
	return len(b), nil
}

// walker is a plain socket that reads to one place after the other, as into a
// ring: it shows what that costs in the caches.
type walker struct {
	net.Conn
	ring []byte
	at   int
}

func (w *walker) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(w.ring[w.at:min(w.at+len(b), len(w.ring))])
	w.at = (w.at + n) % len(w.ring)
	return n, err
}

// BenchmarkBulk moves b.N MiB on one stream. Its guest copies no bytes; that of
// BenchmarkManyBulk does.
func BenchmarkBulk(b *testing.B) {
	const chunk = 64 << 10
	b.Run("plain", func(b *testing.B) {
		x, y := plain(b)
		bulk(b, x, y, chunk)
	})
	for _, ring := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("plain walking/ring=%dKiB", ring>>10), func(b *testing.B) {
			x, y := plain(b)
			bulk(b, x, &walker{Conn: y, ring: make([]byte, ring)}, chunk)
		})
	}
	b.Run("proxy", func(b *testing.B) {
		x, near := plain(b)
		far, y := plain(b)
		go io.CopyBuffer(struct{ io.Writer }{far}, struct{ io.Reader }{near}, make([]byte, chunk))
		bulk(b, x, y, chunk)
	})
	for _, ring := range []uint32{64 << 10, 256 << 10, 512 << 10, 1 << 20} {
		for _, toGuest := range []bool{false, true} {
			name := "guest to TCP"
			if toGuest {
				name = "TCP to guest"
			}
			b.Run(fmt.Sprintf("%s/ring=%dKiB", name, ring>>10), func(b *testing.B) {
				m := start(b, setup{quiet: true})
				g, p := relayed(b, m, ring)
				before := m.guest.Table.Stats()
				if toGuest {
					bulk(b, p, mover{g}, chunk)
				} else {
					bulk(b, mover{g}, p, chunk)
				}
				after := m.guest.Table.Stats()
				perMiB := func(count func(pipes.Stats) uint64) float64 {
					return float64(count(after)-count(before)) / float64(b.N)
				}
				b.ReportMetric(perMiB(func(s pipes.Stats) uint64 { return s.Pipes.Read.Wakes + s.Pipes.Write.Wakes }), "guest-signals/MiB")
				b.ReportMetric(perMiB(func(s pipes.Stats) uint64 { return s.Pipes.Read.Signals + s.Pipes.Write.Signals }), "monitor-signals/MiB")
				b.ReportMetric(perMiB(func(s pipes.Stats) uint64 { return s.Pipes.Read.Chunks + s.Pipes.Write.Chunks }), "chunks/MiB")
			})
		}
	}
}

// BenchmarkWrap sends a chunk through a TCP connection and reads it into memory
// in one piece, and in the two pieces that a wrap in a ring makes: the most
// that mapping each ring twice in a row could save.
func BenchmarkWrap(b *testing.B) {
	const chunk = 64 << 10
	for _, first := range []int{chunk, chunk / 2, 64} {
		b.Run(fmt.Sprintf("first=%d", first), func(b *testing.B) {
			x, y := plain(b)
			raw, err := y.SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			out, in := make([]byte, chunk), make([]byte, chunk)
			halves := [][]byte{in[:first], in[first:]}
			n := 0
			read := func(fd uintptr) bool {
				if first == chunk {
					n, err = unix.Read(int(fd), in)
				} else {
					n, err = unix.Readv(int(fd), halves)
				}
				return err != unix.EAGAIN
			}
			b.SetBytes(chunk)
			for b.Loop() {
				if _, err := x.Write(out); err != nil {
					b.Fatal(err)
				}
				for left := chunk; left > 0; left -= n {
					if rerr := raw.Read(read); rerr != nil || err != nil {
						b.Fatal(rerr, err)
					}
				}
			}
		})
	}
}

// relayed returns the guest's end of a stream and the TCP connection that it is
// relayed to.
func relayed(b *testing.B, m *machine, ring uint32) (*pipestest.GuestConn, *net.TCPConn) {
	b.Helper()
	l, to := hostListener(b, "127.0.0.1:0")
	g, err := m.tryPipe(ring, ring, 0)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := open2(g, connectTo(to)); err != nil {
		b.Fatal(err)
	}
	return g, accepted(b, l)
}

// BenchmarkManyBulk moves b.N MiB on each of 64 streams at once.
func BenchmarkManyBulk(b *testing.B) {
	const streams, chunk = 64, 64 << 10
	many := func(b *testing.B, pair func() (io.Writer, io.Reader)) {
		var all sync.WaitGroup
		gate := make(chan struct{})
		for range streams {
			w, r := pair()
			all.Go(func() {
				out := make([]byte, chunk)
				<-gate
				for range b.N * (mebibyte / chunk) {
					if _, err := w.Write(out); err != nil {
						b.Error(err)
						return
					}
				}
			})
			all.Go(func() {
				in := make([]byte, chunk)
				<-gate
				for left := b.N * mebibyte; left > 0; {
					n, err := r.Read(in)
					if err != nil {
						b.Error(err)
						return
					}
					left -= n
				}
			})
		}
		b.SetBytes(streams * mebibyte)
		b.ReportAllocs()
		b.ResetTimer()
		close(gate)
		all.Wait()
	}
	b.Run("plain", func(b *testing.B) {
		many(b, func() (io.Writer, io.Reader) { return plain(b) })
	})
	b.Run("plain walking", func(b *testing.B) {
		many(b, func() (io.Writer, io.Reader) {
			x, y := plain(b)
			return x, &walker{Conn: y, ring: make([]byte, mebibyte)}
		})
	})
	for _, toGuest := range []bool{false, true} {
		name := "guest to TCP"
		if toGuest {
			name = "TCP to guest"
		}
		b.Run(name, func(b *testing.B) {
			m := start(b, setup{quiet: true, window: 160 << 20})
			many(b, func() (io.Writer, io.Reader) {
				g, c := relayed(b, m, mebibyte)
				if toGuest {
					return c, g
				}
				return g, c
			})
		})
	}
}

// BenchmarkIdle measures the memory of a stream that does nothing: one whose
// guest has sent no frame yet, and one that relays a connection. The Go guest's
// end and the peer's socket count, too.
func BenchmarkIdle(b *testing.B) {
	idle := func(b *testing.B, streams int, each func(*machine)) {
		m := start(b, setup{quiet: true, streams: streams + 1, window: 128 << 20})
		usage := func() (heap, stack uint64) {
			runtime.GC()
			runtime.GC()
			var s runtime.MemStats
			runtime.ReadMemStats(&s)
			return s.HeapAlloc, s.StackInuse
		}
		for range b.N {
			heap, stack := usage()
			goroutines := runtime.NumGoroutine()
			for range streams {
				each(m)
			}
			heap2, stack2 := usage()
			b.ReportMetric(float64(int64(heap2-heap))/float64(streams), "heap-B/stream")
			b.ReportMetric(float64(int64(stack2-stack))/float64(streams), "stack-B/stream")
			b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/float64(streams), "goroutines/stream")
		}
	}
	b.Run("new", func(b *testing.B) {
		idle(b, 10_000, func(m *machine) {
			if _, err := m.tryPipe(4096, 4096, 0); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("relayed", func(b *testing.B) {
		l, to := hostListener(b, "127.0.0.1:0")
		idle(b, 8_000, func(m *machine) { // two descriptors each
			g, err := m.tryPipe(4096, 4096, 0)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := open2(g, connectTo(to)); err != nil {
				b.Fatal(err)
			}
			accepted(b, l)
		})
	})
}

// BenchmarkRoundTrip sends 64 bytes to a TCP peer and back, and from the peer
// to a guest that answers in its interrupt handler and back.
func BenchmarkRoundTrip(b *testing.B) {
	trip := func(b *testing.B, c io.ReadWriter) {
		buf := make([]byte, 64)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	echo := func(peer net.Conn) {
		defer peer.Close()
		io.CopyBuffer(struct{ io.Writer }{peer}, struct{ io.Reader }{peer}, make([]byte, 64))
	}
	b.Run("plain", func(b *testing.B) {
		c, peer := plain(b)
		go echo(peer)
		trip(b, c)
	})
	b.Run("guest", func(b *testing.B) {
		g, peer := relayed(b, start(b, setup{quiet: true}), 64<<10)
		go echo(peer)
		trip(b, g)
	})
	b.Run("guest's handler", func(b *testing.B) {
		g, peer := relayed(b, start(b, setup{quiet: true}), 64<<10)
		var answer func()
		answer = func() {
			for {
				if _, err := g.WriteAvailable(g); err != nil || g.SubscribeReadable(answer) {
					return
				}
			}
		}
		g.OnReadable(answer)
		trip(b, peer)
	})
}

// BenchmarkConnections opens a connection, moves a byte each way and closes it:
// one after the other, and several at once.
func BenchmarkConnections(b *testing.B) {
	for _, parallel := range []int{1, 16} {
		b.Run(fmt.Sprintf("guest/parallel=%d", parallel), func(b *testing.B) {
			m := start(b, setup{quiet: true})
			l, to := hostListener(b, "127.0.0.1:0")
			go answerAll(l)
			b.ReportAllocs()
			b.SetParallelism(parallel)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c, err := m.tryPipe(4096, 4096, 0)
					if err == nil {
						_, err = open2(c, connectTo(to))
					}
					if err == nil {
						err = exchange(c)
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
		b.Run(fmt.Sprintf("plain/parallel=%d", parallel), func(b *testing.B) {
			l, to := hostListener(b, "127.0.0.1:0")
			go answerAll(l)
			b.ReportAllocs()
			b.SetParallelism(parallel)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c, err := net.Dial("tcp", to.String())
					if err == nil {
						err = exchange(c)
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func answerAll(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func exchange(c net.Conn) error {
	defer c.Close()
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// BenchmarkReadFile reads a file of 1 MiB.
func BenchmarkReadFile(b *testing.B) {
	root := shareBytes(b, mebibyte)
	m := start(b, setup{root: root, quiet: true})
	c, err := m.tryPipe(4096, 256<<10, 0)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := open(c, wire.ProtocolFileSystem, nil); err != nil {
		b.Fatal(err)
	}
	request := wire.AppendReadFileRequest(nil, 1, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("file")})
	header := make([]byte, wire.HeaderSize)
	b.SetBytes(mebibyte)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		for more := true; more; {
			if _, err := io.ReadFull(c, header); err != nil {
				b.Fatal(err)
			}
			h, err := wire.DecodeHeader(header)
			if err != nil {
				b.Fatal(err)
			}
			if err := skip(c, int(h.Length)); err != nil {
				b.Fatal(err)
			}
			more = h.Flags&wire.More != 0
		}
	}
}

// skip takes n bytes out of the ring without looking at them.
func skip(c interface {
	ReserveRead(int) ([]byte, []byte, error)
	CommitRead(int)
}, n int) error {
	for n > 0 {
		x, y, err := c.ReserveRead(1)
		if err != nil {
			return err
		}
		k := min(n, len(x)+len(y))
		c.CommitRead(k)
		n -= k
	}
	return nil
}
