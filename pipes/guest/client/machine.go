package client

import (
	"context"
	"sync"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
)

// Server is a monitor's half: package relay's Server is one. Serve answers on
// the control pipe and returns when ctx has ended and it has ended all streams.
type Server interface {
	Serve(ctx context.Context) error
}

// Machine is a guest in Go, a client in it, and the monitor's half that serves
// both: a virtual machine without a virtual CPU.
type Machine struct {
	*Client
	Guest   *guest.Guest
	Control *guest.Conn // the guest's end of the control pipe, which the client uses

	cancel context.CancelFunc
	served chan struct{} // closed when Serve has returned
	err    error         // of Serve, if served
	once   sync.Once
	closed error // of the first Close
}

// Start makes the control pipe of a new guest, has monitor make what serves it,
// and runs that. The caller ends all by [Machine.Close]. After an error the
// guest is still the caller's to close.
func Start(g *guest.Guest, monitor func(control *pipes.Pipe) Server) (*Machine, error) {
	host, pipe, err := g.Pair(defaultRing, defaultRing)
	if err != nil {
		return nil, err
	}
	server := monitor(host)
	m := &Machine{Client: New(g, pipe), Guest: g, Control: pipe, served: make(chan struct{})}
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(m.served)
		m.err = server.Serve(ctx)
	}()
	return m, nil
}

// Stop ends the monitor's half as the end of a virtual machine does, waits for
// it, and returns what Serve did. The guest's ends stay usable: they find their
// streams reset.
func (m *Machine) Stop() error {
	m.cancel()
	<-m.served
	return m.err
}

// Close stops the machine and closes the guest. Afterwards nothing uses the
// guest's window any more but the guest's own ends, if the caller still does.
// It returns the error of Serve, or one that says how many wake-ups were lost,
// for which it looks once more: see [guest.Guest.Close]. Further calls return
// what the first did.
func (m *Machine) Close() error { return m.close(m.Guest.Close) }

// CloseAtOnce is Close without the last look for lost wake-ups.
func (m *Machine) CloseAtOnce() error { return m.close(m.Guest.CloseAtOnce) }

func (m *Machine) close(guest func() error) error {
	m.once.Do(func() {
		m.closed = m.Stop()
		if err := guest(); m.closed == nil {
			m.closed = err
		}
		m.Guest.Table.Wait()
	})
	return m.closed
}
