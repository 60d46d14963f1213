package rpc_test

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

// count returns a Signal that tells one interrupt from all others.
func count(want uint32, signals, others *atomic.Int64) func(uint32) {
	return func(gsi uint32) {
		if gsi == want {
			signals.Add(1)
		} else {
			others.Add(1)
		}
	}
}

// TestNotifications lets a guest notify from some point on: it is looked at only then, and it gets signals, but none before.
func TestNotifications(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	var signals, others atomic.Int64
	m := newMachine(t, rpc.Options{Share: share, Signal: count(rpc.SignalGSI, &signals, &others)})
	f, _ := m.Open("f", message.Mode{Read: true, Write: true, Create: true})
	f.Write(pattern(100))
	if n := signals.Load(); n != 0 {
		t.Fatalf("%d signals before the guest has shown that it knows them", n)
	}
	notify := func(f func(uint64) error) func(uint64) {
		return func(uint64) {
			if err := f(0); err != nil {
				t.Error(err)
			}
		}
	}
	m.NotifyRead, m.NotifyWrite = notify(m.server.NotifyRead), notify(m.server.NotifyWrite)
	// Larger than the ring: the guest waits for room.
	big := pattern(5 << 20)
	if n := f.Write(big); n != len(big) {
		t.Errorf("wrote %d", n)
	}
	before := signals.Load()
	f.Seek(message.SeekStart, 0)
	if signals.Load() == before {
		t.Error("no signal for a response")
	}
	l, address := m.listen(t)
	dial(t, address)
	s := l.Accept()
	m.until(t, "the monitor to be asleep", asleep(m.server))
	looks := m.server.Stats().Looks
	<-time.After(5 * time.Millisecond)
	if n := m.server.Stats().Looks; n != looks {
		t.Errorf("%d looks without a notification", n-looks)
	}
	s.Close()
	l.Close()
	f.Close()
	m.settled(t)
	if n := others.Load(); n != 0 {
		t.Errorf("%d signals that this guest doesn't know", n)
	}
}

// TestDoorbell lets a guest ring the doorbell from its first request on: pipes have numbers then, none twice, and the guest gets signals of its own kind, for a pipe's end, too.
func TestDoorbell(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	var signals, others atomic.Int64
	m := newMachine(t, rpc.Options{Share: share, Signal: count(rpc.DoorbellGSI, &signals, &others)})
	m.ring()
	seen := map[uint64]bool{}
	numbered := func(n uint64) {
		t.Helper()
		if n == 0 || seen[n] {
			t.Errorf("a pipe has number %d", n)
		}
		seen[n] = true
	}
	f, _ := m.Open("f", create)
	numbered(f.Doorbell())
	f.Write(pattern(5 << 20))
	l, address := m.listen(t)
	numbered(l.Doorbell())
	dial(t, address)
	s := l.Accept()
	numbered(s.Doorbell())
	m.until(t, "the monitor to be asleep", asleep(m.server))
	looks := m.server.Stats().Looks
	<-time.After(5 * time.Millisecond)
	if n := m.server.Stats().Looks; n != looks {
		t.Errorf("%d looks without a doorbell", n-looks)
	}
	before := signals.Load()
	s.Close()
	l.Close()
	f.Close()
	m.settled(t)
	// An answer and an end each, and what follows in case one was lost.
	m.until(t, "signals for the ends", func() bool { return signals.Load() >= before+6+3 })
	if n := others.Load(); n != 0 {
		t.Errorf("%d signals that this guest doesn't know", n)
	}
}

// TestDoorbellNamesPipe checks that the doorbell of one pipe has nobody look at the others, however many there are.
func TestDoorbellNamesPipe(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, Signal: func(uint32) {}})
	m.ring()
	var files []*rpctest.File
	for range 200 {
		f, _ := m.Open("f", create)
		files = append(files, f)
	}
	m.until(t, "the monitor to be asleep", asleep(m.server))
	before := m.server.Stats().Looks
	for _, f := range files[:10] {
		f.Seek(message.SeekStart, 0)
	}
	if n := m.server.Stats().Looks - before; n > 10*20 {
		t.Errorf("%d looks for 10 requests", n)
	}
	for _, f := range files {
		f.Close()
	}
	m.settled(t)
}

// asleep reports whether the monitor has not looked at anything for a while.
func asleep(s *rpc.Server) func() bool {
	last := rpc.Stats{}
	same := 0
	return func() bool {
		now := s.Stats()
		if now.Sleeps == last.Sleeps && now.Looks == last.Looks {
			same++
		} else {
			same = 0
		}
		last = now
		return same > 20
	}
}

// TestNothingToLookAt checks that the monitor doesn't look at all while it is its own turn.
func TestNothingToLookAt(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{RAM: rpctest.NewRAM(16 << 20)})
	l, _ := m.listen(t)
	l.Send([]byte{0})
	// Only the control pipe is left, and it less and less.
	m.until(t, "few looks", func() bool {
		before := m.server.Stats().Looks
		<-time.After(100 * time.Millisecond)
		return m.server.Stats().Looks-before < 10
	})
}

// TestLongQuiet checks that a request is found however long the pipe has been quiet, and whatever the crowd.
func TestLongQuiet(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share})
	var files []*rpctest.File
	for range 200 {
		f, _ := m.Open("f", create)
		files = append(files, f)
	}
	m.until(t, "a rare look", func() bool {
		before := m.server.Stats().Looks
		<-time.After(100 * time.Millisecond)
		return m.server.Stats().Looks-before < 500
	})
	for _, f := range files {
		f.Send(message.AppendFileRequest(nil, message.FileRequest{Op: message.FileClose}))
	}
	for _, f := range files {
		f.Receive()
		f.Drop()
	}
	m.settled(t)
}

// TestNotifiedByHalves checks that a guest that notifies may do so for each part of a request.
func TestNotifiedByHalves(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, Signal: func(uint32) {}})
	m.ring()
	f, _ := m.Open("f", create)
	m.until(t, "the monitor to be asleep", asleep(m.server))
	for _, b := range []byte{2, 0, 0, 0, 0, 0, 0, 0} {
		f.Pipe.Write([]byte{b})
	}
	for _, b := range message.AppendFileRequest(nil, message.FileRequest{Op: message.FileRead, Length: 1}) {
		f.Pipe.Write([]byte{b})
	}
	if got := f.Receive(); len(got) == 0 {
		t.Error("no answer")
	}
	f.Close()
	m.settled(t)
}

// TestDropWhileWaiting has a guest that rings the doorbell drop pipes while the monitor waits for a peer that does nothing: they end at once.
func TestDropWhileWaiting(t *testing.T) {
	t.Parallel()
	receive := message.AppendStreamRequest(nil, message.StreamRequest{Op: message.StreamReceive, Length: 10})
	accept := message.AppendListenerRequest(nil, message.ListenerAccept)
	for name, c := range map[string]struct {
		request []byte
		open    func(t *testing.T, m *machine) *rpctest.Pipe
	}{
		"accept": {accept, func(t *testing.T, m *machine) *rpctest.Pipe {
			l, _ := m.listen(t)
			return l.Pipe
		}},
		"accept where listening failed": {accept, func(t *testing.T, m *machine) *rpctest.Pipe {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			return m.Listen(loopback, uint16(taken.Addr().(*net.TCPAddr).Port)).Pipe
		}},
		"receive": {receive, func(t *testing.T, m *machine) *rpctest.Pipe {
			l, address := m.listen(t)
			dial(t, address)
			s := l.Accept()
			l.Close()
			return s.Pipe
		}},
		"receive while connecting": {receive, func(_ *testing.T, m *machine) *rpctest.Pipe {
			return m.Connect("nobody", 1).Pipe
		}},
	} {
		for when, waits := range map[string]bool{"at once": false, "later": true} {
			t.Run(name+", "+when, func(t *testing.T) {
				t.Parallel()
				m := newMachine(t, rpc.Options{Network: stuckNetwork{dialing: make(chan struct{}, 1)}})
				m.ring()
				p := c.open(t, m)
				before := m.server.Stats().Requests
				p.Send(c.request)
				if waits {
					m.until(t, "the request to be taken", func() bool { return m.server.Stats().Requests == before+1 })
				}
				p.Drop()
				m.settled(t)
			})
		}
	}
}

// TestDropAfterSend has a guest that rings the doorbell not wait for the answer to what it sends: it arrives all the same.
func TestDropAfterSend(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	m.ring()
	l, address := m.listen(t)
	for range 20 {
		conn := dial(t, address)
		s := l.Accept()
		want := pattern(20_000)
		s.Send(message.AppendStreamRequest(nil, message.StreamRequest{Op: message.StreamSend, Length: uint64(len(want))}), want)
		s.Drop()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("peer got %d bytes, %v", len(got), err)
		}
	}
	l.Close()
	m.settled(t)
}
