package vmm_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/vmm"
)

// BenchmarkRPCHello is the time from nothing to the guest's first log record,
// and to its end.
func BenchmarkRPCHello(b *testing.B) {
	for b.Loop() {
		start := time.Now()
		g := rpcBoot(b, vmm.Config{}, "rpc-hello")
		g.WaitLog("hello, world")
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms-to-log")
		if _, err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// A dialect is how our own guests of the older ABIs are started in one of them.
type dialect struct {
	name   string
	server []string // image and arguments of a web server
	files  func(piece int) []string
	// What a guest of files logs before it writes, after it, and at the end.
	opened, written, read string
}

// The file that is written and read, in bytes.
const fileTotal = 16 << 20

func dialects() []dialect {
	pipes := func(name string, own ...string) dialect {
		return dialect{
			name:   name,
			server: slices.Concat([]string{"rpc-httpd"}, own, []string{"127.0.0.1", "0"}),
			files: func(piece int) []string {
				return slices.Concat([]string{"rpc-file"}, own, []string{
					fmt.Sprint("piece:", piece), "open:wct:/f", fmt.Sprint("push:", fileTotal), "close",
					"open:r:/f", fmt.Sprint("pull:", fileTotal), "close",
				})
			},
			opened:  "open:wct:/f: ok",
			written: fmt.Sprintf("push:%d: %d", fileTotal, fileTotal),
			read:    fmt.Sprintf("pull:%d: %d", fileTotal, fileTotal),
		}
	}
	return []dialect{
		pipes("A"),
		pipes("A notifies", "--notify"),
		pipes("B", "--dialect-b"),
		{
			name:   "C",
			server: []string{"rpc-calls", callsHTTP, anyLoopback, "0"},
			files: func(piece int) []string {
				return []string{"rpc-calls", callsPieces, fmt.Sprint(piece), fmt.Sprint(fileTotal / piece)}
			},
			opened:  "open big: ok",
			written: fmt.Sprintf("written %d", fileTotal),
			read:    fmt.Sprintf("read %d", fileTotal),
		},
	}
}

// inTurns runs a benchmark for each dialect, several times in turn: what else
// the machine does changes from minute to minute.
func inTurns(b *testing.B, name string, run func(b *testing.B, d dialect)) {
	for turn := range 3 {
		for _, d := range dialects() {
			b.Run(fmt.Sprintf("%s%s/turn %d", name, d.name, turn), func(b *testing.B) { run(b, d) })
		}
	}
}

// BenchmarkRPCRequests is a web server's requests per second, each on a
// connection of its own.
func BenchmarkRPCRequests(b *testing.B) {
	for _, cpus := range []int{1, 2} {
		for _, clients := range []int{1, 32} {
			inTurns(b, fmt.Sprintf("%d CPUs/%d clients/", cpus, clients), func(b *testing.B, d dialect) {
				g := rpcBoot(b, vmm.Config{CPUs: cpus}, d.server[0], d.server[1:]...)
				addr := g.Addr().String()
				if err := rpcRequest(addr, 0); err != nil {
					b.Fatal(err)
				}
				b.ResetTimer()
				var todo atomic.Int64
				todo.Store(int64(b.N))
				var all errgroup.Group
				for range clients {
					all.Go(func() error {
						for todo.Add(-1) >= 0 {
							if err := rpcRequest(addr, 0); err != nil {
								return err
							}
						}
						return nil
					})
				}
				if err := all.Wait(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			})
		}
	}
}

// BenchmarkRPCFile is what a guest writes and reads of a file, in pieces of 64
// KiB and 1 MiB.
func BenchmarkRPCFile(b *testing.B) {
	for _, piece := range []int{64 << 10, 1 << 20} {
		inTurns(b, fmt.Sprint(piece, "/"), func(b *testing.B, d dialect) {
			var write, read time.Duration
			for b.Loop() {
				share, _ := rpcShare(b, true)
				guest := d.files(piece)
				g := rpcBoot(b, vmm.Config{Share: share}, guest[0], guest[1:]...)
				g.WaitLog(d.opened)
				start := time.Now()
				g.WaitLog(d.written)
				written := time.Now()
				g.WaitLog(d.read)
				write += written.Sub(start)
				read += time.Since(written)
				if _, err := g.Wait(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(fileTotal/1e6*float64(b.N)/write.Seconds(), "MB/s-written")
			b.ReportMetric(fileTotal/1e6*float64(b.N)/read.Seconds(), "MB/s-read")
		})
	}
}

// BenchmarkRPCIdle is the monitor's own use of the processor while the guest
// waits for connections: that of all threads but the CPUs', which spin.
func BenchmarkRPCIdle(b *testing.B) {
	const window = 10 * time.Second
	inTurns(b, "", func(b *testing.B, d dialect) {
		g := rpcBoot(b, vmm.Config{}, d.server[0], d.server[1:]...)
		if err := rpcRequest(g.Addr().String(), 0); err != nil {
			b.Fatal(err)
		}
		time.Sleep(time.Second)
		for b.Loop() {
			before, start := monitorTicks(b), time.Now()
			time.Sleep(window)
			const ticksPerSecond = 100
			var used uint64
			for thread, ticks := range monitorTicks(b) {
				used += ticks - before[thread]
			}
			b.ReportMetric(100*float64(used)/ticksPerSecond/time.Since(start).Seconds(), "%core")
		}
	})
}

// monitorTicks is the processor time of each of this process's threads that
// have never run a guest.
func monitorTicks(b *testing.B) map[string]uint64 {
	b.Helper()
	ticks := make(map[string]uint64)
	stats, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		// After the name in parentheses, utime is field 14, stime 15,
		// guest_time 43.
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		var user, system, guest uint64
		if _, err := fmt.Sscan(fmt.Sprintf("%s %s %s", fields[11], fields[12], fields[40]), &user, &system, &guest); err != nil {
			b.Fatal(err)
		}
		if guest == 0 {
			ticks[name] = user + system
		}
	}
	return ticks
}
