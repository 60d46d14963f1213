package rpc_test

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
	"github.com/fix-project/arcavm/rpc/rpctest"
)

// TestNotifications lets a guest notify from some point on: it is looked at
// only then, and it gets signals, but none before.
func TestNotifications(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	var signals atomic.Int64
	m := newMachine(t, rpc.Options{Share: share, Signal: func() { signals.Add(1) }})
	f, _ := m.Open("f", message.Mode{Read: true, Write: true, Create: true})
	f.Write(pattern(100))
	if n := signals.Load(); n != 0 {
		t.Fatalf("%d signals before the guest has shown that it knows them", n)
	}
	m.notify()
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

// TestNothingToLookAt checks that the monitor doesn't look at all while it is
// its own turn.
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

// TestLongQuiet checks that a request is found however long the pipe has been
// quiet, and whatever the crowd.
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

// TestNotifiedByHalves checks that a guest that notifies may do so for each
// part of a request.
func TestNotifiedByHalves(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, Signal: func() {}})
	m.notify()
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

// TestDropAfterSend has a guest that notifies not wait for the answer to what
// it sends: it arrives all the same.
func TestDropAfterSend(t *testing.T) {
	t.Parallel()
	m := newMachine(t, rpc.Options{})
	m.notify()
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
