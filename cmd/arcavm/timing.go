package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/bench"
	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// processStart estimates when the process started: the processor time that it
// has used ago. The kernel's own record counts in hundredths of a second, which
// is too coarse. Until main a process only computes, so the estimate misses
// only its waits for a processor or for the program's file. Call it early.
func processStart() time.Time {
	var used unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &used); err != nil {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(used.Nano()))
}

// writeTiming says when each step of the boot was done, and what the run cost.
func (m *machine) writeTiming(t timingJSON) {
	t.step("end", time.Now())
	switch {
	case m.spec.Output.Timing == "":
	case m.json():
		m.streams.recorder().Info("timing", slog.Any("timing", t))
	case m.spec.Output.Timing == "json":
		// It can be encoded, and standard error tells of its own errors.
		_ = json.NewEncoder(m.streams.err).Encode(t)
	default:
		writeTimingText(m.streams.err, t)
	}
}

// writeTimingText writes the timing as lines for people.
func writeTimingText(w io.Writer, t timingJSON) {
	var b strings.Builder
	fmt.Fprintln(&b, "timing: milliseconds since the process started")
	for _, s := range t.Steps[1:] {
		fmt.Fprintf(&b, "  %9.3f  %s\n", float64((s.At-t.Steps[0].At)/1000)/1000, s.Name)
	}
	if t.Stats != nil {
		writeStats(&b, t.abi, *t.Stats)
	}
	_, _ = io.WriteString(w, b.String())
}

func writeStats(w io.Writer, abi image.ABI, s vmm.Stats) {
	writeCounts(w, "exits by reason", s.Exits)
	writeCounts(w, "hypercalls", s.Hypercalls)
	if s.Refused != 0 {
		count(w, "refused", s.Refused)
	}
	if s.LogSuppressed != 0 {
		count(w, "log records left out", s.LogSuppressed)
	}
	switch abi {
	case image.ABIRPC:
		writeOlder(w, "pipes of the request/response ABI", s.RPC)
		writeLooks(w, s.RPC)
	case image.ABIHypercall:
		writeOlder(w, "sockets and files of the hypercall ABI", s.RPC)
	default:
		writeStreams(w, s.Pipes, s.Relay)
	}
}

// timingJSON is the timing for programs. The first step is the process's start.
type timingJSON struct {
	bench.Timing
	// Stats are missing if an emulated machine ended before it told them.
	Stats *vmm.Stats `json:"stats,omitempty"`
	abi   image.ABI  // that of Stats
}

func (t *timingJSON) step(name string, at time.Time) {
	t.Steps = append(t.Steps, bench.TimingStep{Name: name, At: at.UnixNano()})
}

// startOf returns the timing of a process that has read its command line. In an
// emulated machine the steps of the arcavm outside come first.
func startOf(started, read time.Time) (t timingJSON, err error) {
	if os.Getenv(emulationVariable) == "" {
		t.step("process started", started)
		t.step(commandRead, read)
		return t, nil
	}
	steps, err := emulated.Steps()
	for _, s := range steps {
		t.step(s.Name, s.At)
	}
	t.step("arcavm started inside", started)
	t.step(commandRead+" inside", read)
	return t, err
}

const commandRead = "command line and image headers read"

// add adds a virtual machine's steps and counters.
func (t *timingJSON) add(vm *vmm.VM) {
	_, steps := vm.Timing()
	for _, s := range steps {
		t.step(s.Name, s.At)
	}
	stats := vm.Stats()
	t.Stats, t.abi = &stats, vm.ABI()
}

// count prints one counter.
func count(w io.Writer, name string, n uint64) { fmt.Fprintf(w, "  %12d  %s\n", n, name) }

func writeStreams(w io.Writer, p pipes.Stats, r relay.Stats) {
	out, in := p.Pipes.Read, p.Pipes.Write
	fmt.Fprintln(w, "streams")
	count(w, "opened", p.Opened)
	count(w, "refused with an errno", r.Refused)
	count(w, "pipes refused", r.PipesRefused)
	count(w, "connections accepted", r.Accepted)
	count(w, "accepts that named no unused pipe", r.AcceptsRefused)
	count(w, "accepts that failed on the host", r.AcceptsFailed)
	count(w, "connections out that failed", r.ConnectsFailed)
	count(w, "TLS handshakes of peers that failed", r.HandshakesFailed)
	count(w, "closed connections whose peer took nothing", r.PeersStalled)
	count(w, "listeners and UDP sockets that failed", r.BindsFailed)
	count(w, "denied by policy", r.Denied)
	count(w, "datagrams dropped", r.DatagramsDropped)
	count(w, "datagrams that failed", r.DatagramsFailed)
	count(w, "requests about files that failed", r.FileErrors)
	count(w, "lookups that failed", r.LookupsFailed)
	count(w, "failures of the standard input or output", r.StdioFailed)
	count(w, "reset because of a broken ring", p.Broken)
	count(w, "reset because of a malformed message", r.ProtocolErrors)
	count(w, "handlers that panicked", r.Panics)
	writeReached(w, r.Reached)
	count(w, "bytes relayed from the guest", r.FromGuest)
	count(w, "bytes relayed to the guest", r.ToGuest)
	count(w, "chunks from the guest", out.Chunks)
	count(w, "chunks to the guest", in.Chunks)
	count(w, "signals from the guest", out.Wakes+in.Wakes)
	count(w, "signals from the guest that found nothing to do", out.SpuriousWakes+in.SpuriousWakes)
	count(w, "signals to the guest", out.Signals+in.Signals)
	count(w, "signals not needed, because the guest was awake", out.Suppressed+in.Suppressed)
	count(w, "interrupts raised for them", p.Doorbells)
	count(w, "wake-ups lost that the guest owed", p.Rescued)
	count(w, "wake-ups lost that arcavm owed", p.Forgotten)
	count(w, "wake-ups late, while the guest was busy", p.Late)
}

// writeReached prints how often each limit was reached.
func writeReached(w io.Writer, r network.Reached) {
	for _, l := range []struct {
		name string
		n    uint64
	}{
		{"streams", r.Streams},
		{"ring-memory", r.RingMemory},
		{"files", r.Files},
		{"accepts", r.Accepts},
		{"bytes", r.Bytes},
		{"operations", r.Operations},
		{"disk", r.Disk},
	} {
		if l.n != 0 {
			count(w, "times at the limit "+l.name, l.n)
		}
	}
}

// writeOlder prints the counters that all older ABIs have.
func writeOlder(w io.Writer, title string, s rpc.Stats) {
	fmt.Fprintln(w, title)
	count(w, "opened", s.Opened)
	count(w, "requests", s.Requests)
	count(w, "connections accepted", s.Accepted)
	count(w, "connections out that failed", s.ConnectsFailed)
	count(w, "files refused", s.FilesRefused)
	count(w, "broken by the guest", s.Broken)
	writeReached(w, network.Reached{Streams: s.PipesLimited, Files: s.FilesLimited, Bytes: s.BytesLimited, Disk: s.DiskLimited})
	if s.CallsLimited != 0 {
		count(w, "times too many calls waited", s.CallsLimited)
	}
	count(w, "bytes from the guest", s.FromGuest)
	count(w, "bytes to the guest", s.ToGuest)
}

// writeLooks prints how often the monitor looked for requests of guests that
// don't announce them.
func writeLooks(w io.Writer, s rpc.Stats) {
	count(w, "looks for a request", s.Looks)
	count(w, "looks that found one", s.Wakes)
	count(w, "sleeps between looks", s.Sleeps)
	count(w, "interrupts raised", s.Signals)
}

// writeCounts prints counters, the largest first.
func writeCounts(w io.Writer, title string, counts map[string]uint64) {
	fmt.Fprintln(w, title)
	if len(counts) == 0 {
		fmt.Fprintln(w, "  none")
	}
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		if counts[a] != counts[b] {
			if counts[a] > counts[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		fmt.Fprintf(w, "  %12d  %s\n", counts[name], name)
	}
}
