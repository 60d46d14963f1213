package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/pipes/guest/client"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// rig is a guest in Go and a relay on one window of memory, without KVM.
type rig struct {
	*client.Machine
	window []byte
	stop   func() bool    // keeps the context's end from ending the machine
	ended  sync.WaitGroup // the end that the context's end has caused
	users  sync.WaitGroup // goroutines at the guest's ends
}

// newRig makes a rig with a window of that many bytes, shared memory as a
// virtual machine's is. What isn't touched of it takes no memory.
func newRig(ctx context.Context, window, streams int) (_ *rig, err error) {
	r := &rig{}
	const flags = unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	r.window, err = unix.Mmap(-1, 0, window, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, fmt.Errorf("map a window of %d MiB: %w", window>>20, err)
	}
	g, err := guest.New(r.window, pipes.Options{StreamLimit: streams + 1})
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(r.window))
	}
	var mux relay.Mux
	mux.Handle(wire.ProtocolTCPConnection, relay.TCPConnection())
	mux.Handle(wire.ProtocolTCPListener, relay.TCPListener())
	r.Machine, err = client.Start(g, func(control *pipes.Pipe) client.Server {
		return relay.New(g.Table, control, &mux, relay.Options{})
	})
	if err != nil {
		return nil, errors.Join(err, g.Close(), unix.Munmap(r.window))
	}
	r.ended.Add(1)
	r.stop = context.AfterFunc(ctx, func() {
		defer r.ended.Done()
		_ = r.CloseAtOnce() // close returns the error
	})
	return r, nil
}

// close ends everything. All that uses a pipe must be in users, or have
// returned. It returns an error if a wake-up was lost.
func (r *rig) close() error {
	if r.stop() {
		r.ended.Done()
	}
	_ = r.CloseAtOnce() // the table counts wake-ups that were lost
	r.ended.Wait()
	r.users.Wait()
	return errors.Join(errRescued(lost(r.Guest.Table.Stats())), unix.Munmap(r.window))
}

func (r *rig) counts() counts { return counts{pipes: r.Guest.Table.Stats()} }

// connect has the guest connect to l. It returns the guest's end and the one
// that l accepts.
func (r *rig) connect(
	l *net.TCPListener, outgoing, incoming uint32,
) (*guest.Conn, *net.TCPConn, error) {
	rings := client.Rings{Outgoing: outgoing, Incoming: incoming}
	c, err := r.With(rings).Dial(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	peer, err := l.AcceptTCP()
	return c.Conn, peer, err
}

// accepting is how many accepts the guest asks for ahead.
const accepting = 16

// listener makes a listener of the guest's, for connections on small rings, at
// a free port of l's address.
func (r *rig) listener(l *net.TCPListener) (*client.Listener, error) {
	at := wire.Endpoint{Addr: l.Addr().(*net.TCPAddr).AddrPort().Addr()}
	small := r.With(client.Rings{Outgoing: 4 << 10, Incoming: 4 << 10})
	listener, err := small.ListenTCP(context.Background(), wire.Listen{Endpoint: at, Backlog: 1024})
	if err == nil {
		listener.Ahead = accepting
	}
	return listener, err
}

// serve accepts connections and calls serve with one after the other. It
// returns when the listener's stream ends.
func serve(l *client.Listener, serve func(*guest.Conn)) {
	for {
		c, err := l.AcceptConn()
		if err != nil {
			return
		}
		serve(c.Conn)
	}
}
