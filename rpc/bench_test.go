package rpc_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

// serveHTTP is a web server guest: it accepts, receives, sends and closes on
// each of its threads until the listener is answered no more.
func serveHTTP(l *rpctest.Listener, accepting *sync.Mutex, left *atomic.Int64) {
	buf := make([]byte, 1024)
	page := []byte("HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
	for left.Add(-1) >= 0 {
		accepting.Lock()
		s := l.Accept()
		accepting.Unlock()
		s.Read(buf)
		s.Write(page)
		s.Close()
	}
}

func get(address netip.AddrPort) error {
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

// BenchmarkWebServer is the rate of requests to a web server guest, each on a
// connection of its own: four messages and their responses.
func BenchmarkWebServer(b *testing.B) {
	for _, c := range []struct{ clients, threads int }{{1, 1}, {1, 2}, {32, 1}, {32, 2}, {32, 4}} {
		b.Run(fmt.Sprintf("clients=%d/threads=%d", c.clients, c.threads), func(b *testing.B) {
			m := newMachine(b, rpc.Options{RAM: rpctest.NewRAM(256 << 20)})
			l, address := m.listen(b)
			var accepting sync.Mutex
			var guest, clients sync.WaitGroup
			var served, left atomic.Int64
			served.Store(int64(b.N))
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			for range c.threads {
				guest.Go(func() { serveHTTP(l, &accepting, &served) })
			}
			for range c.clients {
				clients.Go(func() {
					for left.Add(-1) >= 0 {
						if err := get(address); err != nil {
							b.Error(err)
						}
					}
				})
			}
			clients.Wait()
			guest.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			l.Close()
			m.settled(b)
		})
	}
}

// BenchmarkRequest is the time of one request with its response, without a
// connection or a file behind it.
func BenchmarkRequest(b *testing.B) {
	_, share := shared(b, true)
	m := newMachine(b, rpc.Options{Share: share})
	f, _ := m.Open("f", message.Mode{Read: true, Write: true, Create: true})
	for _, think := range []time.Duration{0, 50 * time.Microsecond, 500 * time.Microsecond} {
		b.Run(fmt.Sprintf("think=%v", think), func(b *testing.B) {
			b.ReportAllocs()
			var waited time.Duration
			for b.Loop() {
				for start := time.Now(); time.Since(start) < think; {
				}
				start := time.Now()
				f.Seek(message.SeekStart, 0)
				waited += time.Since(start)
			}
			b.ReportMetric(float64(waited.Nanoseconds())/float64(b.N), "wait-ns/op")
		})
	}
	f.Close()
}

func BenchmarkFile(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20} {
		dir, share := shared(b, true)
		m := newMachine(b, rpc.Options{Share: share, RAM: rpctest.NewRAM(256 << 20)})
		data := pattern(64 << 20)
		if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o600); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("read/%d", size), func(b *testing.B) {
			f, _ := m.Open("f", read)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			buf := make([]byte, size)
			before := m.server.Stats().Requests
			for b.Loop() {
				if n := f.Read(buf); n != size {
					f.Seek(message.SeekStart, 0)
				}
			}
			b.ReportMetric(float64(m.server.Stats().Requests-before)/float64(b.N), "requests/op")
			f.Close()
		})
		b.Run(fmt.Sprintf("write/%d", size), func(b *testing.B) {
			f, _ := m.Open("f", message.Mode{Write: true})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			at := 0
			for b.Loop() {
				if n := f.Write(data[:size]); n != size {
					b.Fatal(n)
				}
				if at += size; at == len(data) {
					at = 0
					f.Seek(message.SeekStart, 0)
				}
			}
			f.Close()
		})
	}
}

// BenchmarkIdle is what 1,000 connections cost the monitor, none of which has
// anything to do: the share of a core, in percent. Half of them have a Receive
// under way, half are the guest's turn.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{0, 1000} {
		b.Run(fmt.Sprintf("connections=%d", n), func(b *testing.B) {
			m := newMachine(b, rpc.Options{RAM: rpctest.NewRAM(512 << 20)})
			l, address := m.listen(b)
			for i := range n {
				dial(b, address)
				if s := l.Accept(); i%2 == 0 {
					s.Ask(100)
				}
			}
			quiet := time.NewTimer(300 * time.Millisecond)
			<-quiet.C
			before := m.server.Stats()
			var ru0, ru1 unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &ru0); err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			for b.Loop() {
				quiet.Reset(time.Second)
				<-quiet.C
			}
			elapsed := time.Since(start).Seconds()
			_ = unix.Getrusage(unix.RUSAGE_SELF, &ru1)
			after := m.server.Stats()
			cpu := float64(ru1.Utime.Nano()+ru1.Stime.Nano()-ru0.Utime.Nano()-ru0.Stime.Nano()) / 1e9
			b.ReportMetric(100*cpu/elapsed, "%core")
			b.ReportMetric(float64(after.Looks-before.Looks)/elapsed, "looks/s")
			b.ReportMetric(float64(after.Sleeps-before.Sleeps)/elapsed, "sleeps/s")
		})
	}
}
