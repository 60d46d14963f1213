package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// rig is a relay and a guest in Go on one window: the guest's half of PROTOCOL.md sections 7 to 9 and 12, without KVM.
type rig struct {
	window  []byte
	table   *pipes.Table
	bell    chan struct{}                // room for one: an interrupt that is pending is not raised twice
	ends    []atomic.Pointer[pipes.Pipe] // the guest's, by slot
	stop    context.CancelFunc
	running sync.WaitGroup // the relay and the interrupt handler
	users   sync.WaitGroup // goroutines at the guest's ends

	mu      sync.Mutex
	control *pipes.Pipe // the guest's end
}

// newRig makes a window of that many bytes, of which only what is touched is used.
func newRig(ctx context.Context, window, streams int) (_ *rig, err error) {
	r := &rig{bell: make(chan struct{}, 1), ends: make([]atomic.Pointer[pipes.Pipe], streams+1)}
	r.window, err = unix.Mmap(-1, 0, window, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map a window of %d MiB: %w", window>>20, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Munmap(r.window))
		}
	}()
	r.table, err = pipes.NewTable(r.window, pipes.Options{CPUs: 1, StreamLimit: streams + 1, Doorbell: func(int) {
		select {
		case r.bell <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		return nil, err
	}
	host, err := r.table.New(64<<10, 64<<10, 0)
	if err != nil {
		return nil, err
	}
	if r.control, err = r.attach(host.Descriptor()); err != nil {
		return nil, err
	}
	var mux relay.Mux
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	server := relay.New(r.table, host, &mux, relay.Options{})
	ctx, r.stop = context.WithCancel(ctx)
	r.running.Go(func() {
		_ = server.Serve(ctx)
		_ = r.table.Close()
		for i := range r.ends {
			if p := r.ends[i].Load(); p != nil {
				p.WakeReader()
				p.WakeWriter()
			}
		}
	})
	r.running.Go(func() { r.handleInterrupts(ctx) })
	return r, nil
}

// close ends everything. Who uses a pipe is in users, or has returned.
func (r *rig) close() {
	r.stop()
	r.running.Wait()
	r.users.Wait()
	r.table.Wait()
	_ = unix.Munmap(r.window)
}

func (r *rig) handleInterrupts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.bell:
			r.interrupt()
		}
	}
}

// interrupt is the guest's handler of the stream vector.
func (r *rig) interrupt() {
	base := r.table.PendingOffset()
	for top := word(r.window, base).Swap(0); top != 0; top &= top - 1 {
		m := uint64(bits.TrailingZeros64(top))
		for mid := word(r.window, base+64+8*m).Swap(0); mid != 0; mid &= mid - 1 {
			l := 64*m + uint64(bits.TrailingZeros64(mid))
			for leaf := word(r.window, base+576+8*l).Swap(0); leaf != 0; leaf &= leaf - 1 {
				event := 64*l + uint64(bits.TrailingZeros64(leaf))
				p := r.ends[event/2].Load()
				switch {
				case p == nil:
				case event%2 == 0:
					p.WakeReader()
				default:
					p.WakeWriter()
				}
			}
		}
	}
}

func (r *rig) attach(d pipes.Descriptor) (*pipes.Pipe, error) {
	p, err := pipes.Attach(r.window, d, r.table)
	if err != nil {
		return nil, err
	}
	r.ends[d.ID.Slot()].Store(p)
	return p, nil
}

// receive reads one frame.
func receive(c io.Reader) (wire.Header, []byte, error) {
	b := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return wire.Header{}, nil, err
	}
	h, err := wire.DecodeHeader(b)
	if err != nil {
		return h, nil, err
	}
	p := make([]byte, h.Length)
	_, err = io.ReadFull(c, p)
	return h, p, err
}

// pipe asks for a pipe through the control pipe. Several goroutines may call it.
func (r *rig) pipe(outgoing, incoming uint32) (*pipes.Pipe, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	request := wire.AppendNewStreamRequest(nil, 1, wire.NewStreamRequest{OutgoingSize: outgoing, IncomingSize: incoming})
	if _, err := r.control.Write(request); err != nil {
		return nil, err
	}
	_, payload, err := receive(r.control)
	if err != nil {
		return nil, err
	}
	info, err := wire.DecodeDataStreamInfo(payload)
	if err != nil {
		return nil, err
	}
	if info.Status != 0 {
		return nil, fmt.Errorf("new stream: %w", unix.Errno(info.Status))
	}
	d := info.Pipe
	return r.attach(pipes.Descriptor{
		ID: pipes.ID(d.ID), Header: d.Header, Outgoing: d.Outgoing, Incoming: d.Incoming,
		OutgoingSize: d.OutgoingSize, IncomingSize: d.IncomingSize,
	})
}

// open sends Open on p and returns Opened's payload.
func open(p *pipes.Pipe, protocol uint16, payload []byte) ([]byte, error) {
	if _, err := p.Write(wire.AppendOpen(nil, 2, wire.Open{Protocol: protocol, Payload: payload})); err != nil {
		return nil, err
	}
	_, answer, err := receive(p)
	if err != nil {
		return nil, err
	}
	o, err := wire.DecodeOpened(answer)
	if err != nil {
		return nil, err
	}
	if o.Status != 0 {
		return nil, fmt.Errorf("open: %w", unix.Errno(o.Status))
	}
	return o.Payload, nil
}

// connect is the guest's connect: its end, and the peer's that l accepts.
func (r *rig) connect(l *net.TCPListener, outgoing, incoming uint32) (*pipes.Pipe, *net.TCPConn, error) {
	p, err := r.pipe(outgoing, incoming)
	if err != nil {
		return nil, nil, err
	}
	to := addrOf(l)
	if _, err := open(p, wire.ProtocolTCPConnection, wire.AppendConnect(nil, wire.Connect{Endpoint: endpoint(to.Addr(), to.Port())})); err != nil {
		return nil, nil, err
	}
	peer, err := l.AcceptTCP()
	return p, peer, err
}

func endpoint(a netip.Addr, port uint16) wire.Endpoint { return wire.Endpoint{Addr: a, Port: port} }

func addrOf(l *net.TCPListener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
