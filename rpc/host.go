package rpc

import (
	"cmp"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/limit"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/share"
)

// host is what guests of every dialect are served with, whether they ask by
// pipes or by hypercalls: the shared allocator, what limits them, and the log.
// Its methods may be called concurrently.
type host struct {
	counters
	o      Options
	log    *slog.Logger
	places sync.Map // of *limit.Log, by message
	bytes  *limit.Rate
	files  atomic.Int64 // open now
	calls  share.Calls
	linger time.Duration // lingerTimeout, but in tests
	alloc  *allocator
	broke  sync.Once // OnBroken is called
}

// newHost fills in what o leaves out, and initialises the allocator in RAM.
func newHost(o Options) (*host, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Network == nil {
		o.Network = network.Host{}
	}
	o.Limits = o.Limits.WithDefaults()
	o.Pipes = cmp.Or(o.Pipes, DefaultPipes)
	h := &host{
		o: o, log: o.Logger, linger: lingerTimeout,
		bytes: limit.NewRate(o.Limits.Bytes, 1),
		calls: share.NewCalls(share.NewGates(o.Share), share.NewQuota(o.Limits.Disk)),
	}
	var err error
	h.alloc, err = newAllocator(o.RAM, o.Reserved, h.allocatorBroken)
	return h, err
}

// Alloc takes a block of at least size bytes of RAM, a power of two, zeroed and
// aligned to its size, and returns its offset. It is meant for what the guest
// needs at its start, and is the guest's from then on. ENOMEM: there is none.
func (h *host) Alloc(size uint64) (uint64, error) { return h.alloc.alloc(size) }

func (h *host) allocatorBroken(err error) {
	h.log.Error("the allocator in guest memory can't be used any more", "err", err)
	h.guestBroken(err)
}

// guestBroken tells why the virtual machine can't go on. Only the first reason
// counts: others follow from it.
func (h *host) guestBroken(err error) {
	h.broke.Do(func() {
		if h.o.OnBroken != nil {
			h.o.OnBroken(err)
		}
	})
}

// warn logs at a limited rate for each message.
func (h *host) warn(msg string, args ...any) {
	place, ok := h.places.Load(msg)
	if !ok {
		place, _ = h.places.LoadOrStore(msg, limit.NewLog(time.Second, 10))
	}
	for i, a := range args {
		if text, ok := a.(string); ok {
			args[i] = cut(text)
		}
	}
	place.(*limit.Log).Log(h.log.With(args...), slog.LevelWarn, msg)
}

// maxText is how much of a guest's text goes to the log, in bytes.
const maxText = 256

func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return text[:maxText] + "…"
}

// holdFile takes the place of one more open file.
func (h *host) holdFile() error {
	if h.files.Add(1) <= int64(h.o.Limits.Files) {
		return nil
	}
	h.files.Add(-1)
	h.filesLimited.Add(1)
	h.warn("guest has reached a limit", "limit", "files")
	return unix.ENFILE
}

// overQuota counts and says that the guest has used up its part of the disk, if
// err is about that.
func (h *host) overQuota(err error) {
	if errors.Is(err, share.ErrQuota) {
		h.diskLimited.Add(1)
		h.warn("guest has reached a limit", "limit", "disk")
	}
}

func (h *host) dropFile() { h.files.Add(-1) }

// spend waits until n bytes may be moved, or done is closed.
func (h *host) spend(done <-chan struct{}, n int) {
	if h.bytes.Wait(done, n) {
		h.bytesLimited.Add(1)
		h.warn("guest has reached a limit", "limit", "bytes")
	}
}
