package vmm_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// BenchmarkBoot measures from nothing to the guest's end, and shows the
// monitor's own share of it: until the virtual CPUs run.
func BenchmarkBoot(b *testing.B) {
	for _, memory := range []uint64{128 << 20, 1 << 30, 64 << 30} {
		b.Run(fmt.Sprint(memory>>20, "MiB"), func(b *testing.B) {
			var own, log time.Duration
			for b.Loop() {
				g := vmmtest.Boot(b, vmm.Config{Image: vmmtest.Image(b, "hello"), Memory: memory})
				if code, err := g.Wait(); code != 0 || err != nil {
					b.Fatal(code, err)
				}
				start, steps := g.VM.Timing()
				own += steps[len(steps)-2].At.Sub(start)
				log += steps[len(steps)-1].At.Sub(start)
			}
			b.ReportMetric(float64(own.Microseconds())/float64(b.N), "monitor-µs/op")
			b.ReportMetric(float64(log.Microseconds())/float64(b.N), "first-log-µs/op")
		})
	}
}

// BenchmarkCancel measures how long the end of a running VM takes: every CPU
// out of the guest, everything freed.
func BenchmarkCancel(b *testing.B) {
	for _, cpus := range []int{1, 4, 64} {
		b.Run(fmt.Sprint(cpus, "CPUs"), func(b *testing.B) {
			var worst time.Duration
			for b.Loop() {
				b.StopTimer()
				vm, err := vmm.New(vmm.Config{Image: vmmtest.Image(b, "idle"), CPUs: cpus})
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				running := make(chan struct{})
				done := make(chan struct{})
				go func() { close(running); vm.Run(ctx); close(done) }()
				<-running
				b.StartTimer()
				start := time.Now()
				cancel()
				<-done
				worst = max(worst, time.Since(start))
			}
			b.ReportMetric(float64(worst.Microseconds()), "worst-µs")
		})
	}
}

// BenchmarkIdle measures ten seconds of a guest that has nothing to do but
// hold 100 open connections: processor time, and exits.
func BenchmarkIdle(b *testing.B) {
	const connections, window = 100, 10 * time.Second
	g := vmmtest.Boot(b, vmm.Config{Image: vmmtest.Image(b, "httpd"), Args: []string{"127.0.0.1:0"}})
	addr := g.Addr().String()
	for range connections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		if err := echoRequest(c, []byte("hello")); err != nil {
			b.Fatal(err)
		}
	}
	// The guest still answers the last connection's request for the next.
	for n := exitCount(g); ; {
		time.Sleep(100 * time.Millisecond)
		if now := exitCount(g); now == n {
			break
		} else {
			n = now
		}
	}
	for b.Loop() {
		before, exits, start := processorTime(b), exitCount(g), time.Now()
		time.Sleep(window)
		elapsed := time.Since(start)
		b.ReportMetric(100*(processorTime(b)-before).Seconds()/elapsed.Seconds(), "%core")
		b.ReportMetric(float64(exitCount(g)-exits)/elapsed.Seconds(), "exits/s")
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func exitCount(g *vmmtest.Guest) (n uint64) {
	for _, c := range g.VM.Stats().Exits {
		n += c
	}
	return n
}

// BenchmarkBulk measures GET /bytes of a guest that moves cursors, and how
// often guest and monitor signal each other for it. One operation is 256 MiB.
func BenchmarkBulk(b *testing.B) {
	const size = 256 << 20
	for _, ring := range []int{512 << 10, 4 << 20, 16 << 20, 64 << 20} {
		b.Run(fmt.Sprintf("ring=%dKiB", ring>>10), func(b *testing.B) {
			g := vmmtest.Boot(b, vmm.Config{Image: vmmtest.Image(b, "httpd"), Args: []string{"127.0.0.1:0", fmt.Sprint(ring)}, Window: 8 << 30})
			client, addr := newClient(b), g.Addr()
			get := func(n int64) {
				resp, err := client.Get(fmt.Sprint("http://", addr, "/bytes/", n))
				if err != nil {
					b.Fatal(err)
				}
				defer resp.Body.Close()
				if got, err := io.Copy(io.Discard, resp.Body); got != n || err != nil {
					b.Fatal(got, err)
				}
			}
			get(1)
			before := g.VM.Stats().Pipes.Pipes.Read
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				get(size)
			}
			after := g.VM.Stats().Pipes.Pipes.Read
			chunks := float64(after.Chunks - before.Chunks)
			signals := float64(after.Wakes - before.Wakes + after.Signals - before.Signals)
			b.ReportMetric(chunks/float64(b.N), "chunks/op")
			b.ReportMetric(signals/float64(b.N), "signals/op")
			b.ReportMetric(chunks/signals, "chunks/signal")
		})
	}
}

// BenchmarkPause measures how long it takes until every CPU is out of the
// guest: of guests whose CPUs have halted, and of others that make hypercalls.
func BenchmarkPause(b *testing.B) {
	for _, image := range []string{"idle", "count"} {
		for _, cpus := range []int{1, 2, 64} {
			b.Run(fmt.Sprint(image, "/", cpus, "CPUs"), func(b *testing.B) {
				g := vmmtest.Boot(b, vmm.Config{Image: vmmtest.Image(b, image), Args: []string{"call"}, CPUs: cpus})
				g.WaitLog(map[string]string{"idle": "idle", "count": "counting"}[image])
				var worst time.Duration
				for b.Loop() {
					start := time.Now()
					pause(b, g.VM)
					worst = max(worst, time.Since(start))
					b.StopTimer()
					resume(b, g.VM)
					if image == "count" {
						goesOn(b, g.VM, counts(b, g.VM))
					}
					b.StartTimer()
				}
				b.ReportMetric(float64(worst.Microseconds()), "worst-µs")
			})
		}
	}
}

// BenchmarkExits measures a guest that does nothing but make hypercalls: the
// way out of the guest, through the monitor and back. One operation is a second
// of it, so that allocs/op beside exits/s shows that an exit allocates nothing.
func BenchmarkExits(b *testing.B) {
	g := vmmtest.Boot(b, vmm.Config{Image: vmmtest.Image(b, "count"), Args: []string{"call"}})
	g.WaitLog("counting")
	b.ReportAllocs()
	start, first := time.Now(), exitCount(g)
	for b.Loop() {
		time.Sleep(time.Second)
	}
	b.ReportMetric(float64(exitCount(g)-first)/time.Since(start).Seconds(), "exits/s")
}
