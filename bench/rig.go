package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// rig is a relay and a guest in Go on one window, without KVM.
type rig struct {
	window  []byte
	guest   *guest.Guest
	stop    context.CancelFunc
	running sync.WaitGroup // the relay
	users   sync.WaitGroup // goroutines at the guest's ends

	mu      sync.Mutex
	control *guest.Conn
}

// newRig makes a window of that many bytes, of which only what is touched is used. It is shared memory, as a virtual machine's is.
func newRig(ctx context.Context, window, streams int) (_ *rig, err error) {
	r := &rig{}
	r.window, err = unix.Mmap(-1, 0, window, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map a window of %d MiB: %w", window>>20, err)
	}
	r.guest, err = guest.New(r.window, pipes.Options{StreamLimit: streams + 1})
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(r.window))
	}
	host, control, err := r.guest.Pair(64<<10, 64<<10)
	if err != nil {
		return nil, errors.Join(err, r.guest.Close(), unix.Munmap(r.window))
	}
	r.control = control
	var mux relay.Mux
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	server := relay.New(r.guest.Table, host, &mux, relay.Options{})
	ctx, r.stop = context.WithCancel(ctx)
	r.running.Go(func() {
		_ = server.Serve(ctx)
		// Of wake-ups that were lost, close knows.
		_ = r.guest.CloseAtOnce()
	})
	return r, nil
}

// close ends everything. Who uses a pipe is in users, or has returned. It returns an error if a wake-up was lost.
func (r *rig) close() error {
	r.stop()
	r.running.Wait()
	r.users.Wait()
	r.guest.Table.Wait()
	return errors.Join(errRescued(lost(r.guest.Table.Stats())), unix.Munmap(r.window))
}

func (r *rig) counts() counts { return counts{pipes: r.guest.Table.Stats()} }

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
func (r *rig) pipe(outgoing, incoming uint32) (*guest.Conn, error) {
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
	return r.guest.Attach(pipes.Descriptor{
		ID: pipes.ID(d.ID), Header: d.Header, Outgoing: d.Outgoing, Incoming: d.Incoming,
		OutgoingSize: d.OutgoingSize, IncomingSize: d.IncomingSize,
	})
}

// open sends Open on p and returns Opened's payload.
func open(p *guest.Conn, protocol uint16, payload []byte) ([]byte, error) {
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
func (r *rig) connect(l *net.TCPListener, outgoing, incoming uint32) (*guest.Conn, *net.TCPConn, error) {
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

// listener is a listener of the guest's, bound to a free port of the address that l has.
func (r *rig) listener(l *net.TCPListener) (*guest.Conn, *net.TCPAddr, error) {
	p, err := r.pipe(64<<10, 64<<10)
	if err != nil {
		return nil, nil, err
	}
	bound, err := open(p, wire.ProtocolTCPListener, wire.AppendListen(nil, wire.Listen{Endpoint: endpoint(addrOf(l).Addr(), 0), Backlog: 1024}))
	if err != nil {
		return nil, nil, err
	}
	at, err := wire.DecodeEndpoint(bound)
	return p, net.TCPAddrFromAddrPort(at.AddrPort()), err
}

// accepting is how many accepts the guest has asked for at once.
const accepting = 16

// serve accepts connections, each on small rings, and has serve called with them one after the other. It returns when the listener's stream ends.
func (r *rig) serve(listener *guest.Conn, serve func(*guest.Conn)) {
	waiting := make([]*guest.Conn, accepting)
	ask := func(i int) error {
		p, err := r.pipe(4<<10, 4<<10)
		if err != nil {
			return err
		}
		waiting[i] = p
		_, err = listener.Write(wire.AppendAcceptConnection(nil, uint64(i), wire.AcceptConnection{Pipe: uint64(p.ID())}))
		return err
	}
	for i := range waiting {
		if ask(i) != nil {
			return
		}
	}
	for {
		h, payload, err := receive(listener)
		if err != nil || h.RequestID >= accepting {
			return
		}
		c, err := wire.DecodeIncomingConnection(payload)
		if err != nil || c.Status != 0 {
			return
		}
		serve(waiting[h.RequestID])
		if ask(int(h.RequestID)) != nil {
			return
		}
	}
}
