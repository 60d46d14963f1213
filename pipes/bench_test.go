package pipes_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// pattern is an endless source that costs next to nothing.
type pattern struct{ left int64 }

func (r *pattern) Read(b []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), r.left)
	r.left -= n
	return int(n), nil
}

type countingWriter struct{ n int64 }

func (w *countingWriter) Write(b []byte) (int, error) {
	w.n += int64(len(b))
	return len(b), nil
}

func report(b *testing.B, bytes int64, sender, receiver pipes.DirectionStats) {
	mib := float64(bytes) / (1 << 20)
	b.ReportMetric(float64(sender.Signals+receiver.Signals)/mib, "signals/MiB")
	b.ReportMetric(float64(sender.Chunks+receiver.Chunks)/mib, "chunks/MiB")
	b.ReportMetric(float64(sender.SpuriousWakes+receiver.SpuriousWakes)/mib, "spurious/MiB")
}

// BenchmarkCopy moves bytes by Write and Read with buffers of a given size.
func BenchmarkCopy(b *testing.B) {
	for _, size := range []int{64, 4096, 65536} {
		for _, way := range []string{"out", "in"} {
			b.Run(fmt.Sprintf("%s/%d", way, size), func(b *testing.B) {
				host, guest := pipestest.NewPair(b, 256<<10)
				src, dst := guest.Pipe, host
				if way == "in" {
					src, dst = host, guest.Pipe
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				done := make(chan error, 1)
				go func() {
					buf := make([]byte, size)
					for {
						if _, err := dst.Read(buf); err != nil {
							done <- err
							return
						}
					}
				}()
				buf := make([]byte, size)
				for b.Loop() {
					if _, err := src.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				if err := src.CloseWrite(); err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != io.EOF {
					b.Fatal(err)
				}
				report(b, int64(b.N)*int64(size), src.Stats().Write, dst.Stats().Read)
			})
		}
	}
}

// BenchmarkZeroCopy moves 64 MiB by ReadFrom and WriteTo: the rings' own cost,
// as no byte is touched.
func BenchmarkZeroCopy(b *testing.B) {
	const total = 64 << 20
	for _, size := range []uint32{16 << 10, 256 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(total)
			b.ReportAllocs()
			g := pipestest.New(b, 16<<20, pipes.Options{})
			var in, out pipes.DirectionStats
			for b.Loop() {
				host, guest, err := g.Pair(4096, size)
				if err != nil {
					b.Fatal(err)
				}
				done := make(chan error, 1)
				go func() {
					_, err := guest.WriteTo(&countingWriter{})
					done <- err
				}()
				if _, err := host.ReadFrom(&pattern{total}); err != nil {
					b.Fatal(err)
				}
				host.Close()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				guest.Close()
				out, in = host.Stats().Write, guest.Stats().Read
			}
			report(b, total, out, in)
		})
	}
}

// BenchmarkRoundTrip sends 64 bytes to the guest and back, with a wake-up each
// way.
func BenchmarkRoundTrip(b *testing.B) {
	host, guest := pipestest.NewPair(b, 4096)
	done := make(chan error, 1)
	go func() {
		_, err := guest.WriteTo(guest)
		done <- err
	}()
	var buf [64]byte
	b.ReportAllocs()
	for b.Loop() {
		if _, err := host.Write(buf[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(host, buf[:]); err != nil {
			b.Fatal(err)
		}
	}
	host.CloseWrite()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	s := host.Stats()
	b.ReportMetric(float64(s.Write.Signals+s.Read.Wakes)/float64(b.N), "signals/op")
}

// BenchmarkTCP moves 64 MiB between a loopback TCP connection and a guest that
// only moves cursors: what a relayed stream costs.
func BenchmarkTCP(b *testing.B) {
	const total = 64 << 20
	for _, way := range []string{"out", "in"} {
		for _, size := range []uint32{16 << 10, 64 << 10, 256 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%d", way, size), func(b *testing.B) {
				near, far := tcpPair(b)
				host, guest := pipestest.NewPair(b, size)
				b.SetBytes(total)
				b.ReportAllocs()
				var sent, received int64
				done := make(chan error, 2)
				peer := func(f func() error) { go func() { done <- f() }() }
				for b.Loop() {
					if way == "in" {
						peer(func() error {
							_, err := io.CopyBuffer(far, struct{ io.Reader }{&pattern{total}}, make([]byte, 256<<10))
							return err
						})
						peer(func() error { _, err := host.ReadFrom(io.LimitReader(near, total)); return err })
						received += take(b, guest.Pipe, total)
					} else {
						peer(func() error { _, err := guest.ReadFrom(&pattern{total}); return err })
						peer(func() error { _, err := host.WriteTo(&limited{near, total}); return ignoreStop(err) })
						n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(far, total), make([]byte, 256<<10))
						if err != nil {
							b.Fatal(err)
						}
						sent += n
					}
					for range 2 {
						if err := <-done; err != nil {
							b.Fatal(err)
						}
					}
				}
				h, g := host.Stats(), guest.Stats()
				if way == "in" {
					report(b, received, h.Write, g.Read)
				} else {
					report(b, sent, g.Write, h.Read)
				}
			})
		}
	}
}

// take reads n bytes by moving the cursor only.
func take(b *testing.B, p *pipes.Pipe, n int64) int64 {
	for left := n; left > 0; {
		x, y, err := p.ReserveRead(1)
		if err != nil {
			b.Fatal(err)
		}
		m := min(left, int64(len(x)+len(y)))
		p.CommitRead(int(m))
		left -= m
	}
	return n
}

var errStop = errors.New("enough")

// limited stops WriteTo after n bytes.
type limited struct {
	w io.Writer
	n int64
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.w.Write(p[:min(int64(len(p)), l.n)])
	if l.n -= int64(n); l.n == 0 && err == nil {
		err = errStop
	}
	return n, err
}

func ignoreStop(err error) error {
	if err == errStop {
		return nil
	}
	return err
}

func tcpPair(b *testing.B) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// BenchmarkOpenClose makes pipes, opens them at the guest, and closes both
// ends.
func BenchmarkOpenClose(b *testing.B) {
	g := pipestest.New(b, 16<<20, pipes.Options{})
	b.ReportAllocs()
	for b.Loop() {
		host, guest, err := g.Pair(64<<10, 64<<10)
		if err != nil {
			b.Fatal(err)
		}
		host.Close()
		guest.Close()
	}
	if s := g.Table.Stats(); s.Open != 0 {
		b.Fatalf("%d pipes left", s.Open)
	}
}
