package relay

import (
	"maps"
	"sync/atomic"

	"github.com/fix-project/arcavm/network"
)

// Stats is a snapshot of what a Server has done so far.
type Stats struct {
	Opened           map[uint16]uint64 // streams that handlers took, by protocol
	Refused          uint64            // streams whose Open was answered with an errno
	PipesRefused     uint64            // NewStreamRequests that were answered with an errno
	Accepted         uint64            // connections accepted
	AcceptsRefused   uint64            // AcceptConnections that named no pipe that is unused
	AcceptsFailed    uint64            // failed accepts: no descriptors, no memory
	ConnectsFailed   uint64            // connections refused, timed out, not found
	HandshakesFailed uint64            // connections to TLS listeners that came to nothing
	PeersStalled     uint64            // connections reset as their peer took nothing (linger.go)
	BindsFailed      uint64            // listeners and UDP sockets that the host refused
	Denied           uint64            // connects, listens and datagrams that the policy refused
	DatagramsDropped uint64            // UDP datagrams lost because a guest didn't read
	DatagramsFailed  uint64            // reports about datagrams that weren't sent, or came back
	FileErrors       uint64            // requests about files that were answered with an errno
	LookupsFailed    uint64            // look-ups that were answered with an errno
	StdioFailed      uint64            // times that the host's standard input or output failed
	ProtocolErrors   uint64            // pipes reset with EPROTO
	Panics           uint64            // of handlers
	ToGuest          uint64            // bytes relayed from sockets and files
	FromGuest        uint64            // bytes relayed to sockets and files
	Streams          int               // pipes that the monitor hasn't closed, but the control pipe
	Reached          network.Reached   // limits
}

type counters struct {
	opened           map[uint16]uint64 // guarded by Server.mu
	refused          atomic.Uint64
	pipesRefused     atomic.Uint64
	accepted         atomic.Uint64
	acceptsRefused   atomic.Uint64
	acceptsFailed    atomic.Uint64
	connectsFailed   atomic.Uint64
	handshakesFailed atomic.Uint64
	peersStalled     atomic.Uint64
	bindsFailed      atomic.Uint64
	denied           atomic.Uint64
	datagramsDropped atomic.Uint64
	datagramsFailed  atomic.Uint64
	fileErrors       atomic.Uint64
	lookupsFailed    atomic.Uint64
	stdioFailed      atomic.Uint64
	protocolErrors   atomic.Uint64
	panics           atomic.Uint64
	reached          [limitCount]atomic.Uint64
}

// traffic counts relayed bytes, each way.
type traffic struct{ toGuest, fromGuest uint64 }

func (t *traffic) add(s *Stream) {
	t.toGuest += s.toGuest.Load()
	t.fromGuest += s.fromGuest.Load()
}

// Stats returns a snapshot. It may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	opened, bytes, streams := maps.Clone(s.count.opened), s.closed, s.list()
	s.mu.Unlock()
	// A stream that ends meanwhile keeps its counters.
	for _, st := range streams {
		bytes.add(st)
	}
	reached := func(n limitName) uint64 { return s.count.reached[n].Load() }
	return Stats{
		Opened:           opened,
		Refused:          s.count.refused.Load(),
		PipesRefused:     s.count.pipesRefused.Load(),
		Accepted:         s.count.accepted.Load(),
		AcceptsRefused:   s.count.acceptsRefused.Load(),
		AcceptsFailed:    s.count.acceptsFailed.Load(),
		ConnectsFailed:   s.count.connectsFailed.Load(),
		HandshakesFailed: s.count.handshakesFailed.Load(),
		PeersStalled:     s.count.peersStalled.Load(),
		BindsFailed:      s.count.bindsFailed.Load(),
		Denied:           s.count.denied.Load(),
		DatagramsDropped: s.count.datagramsDropped.Load(),
		DatagramsFailed:  s.count.datagramsFailed.Load(),
		FileErrors:       s.count.fileErrors.Load(),
		LookupsFailed:    s.count.lookupsFailed.Load(),
		StdioFailed:      s.count.stdioFailed.Load(),
		ProtocolErrors:   s.count.protocolErrors.Load(),
		Panics:           s.count.panics.Load(),
		ToGuest:          bytes.toGuest,
		FromGuest:        bytes.fromGuest,
		Streams:          len(streams),
		Reached: network.Reached{
			Streams:    reached(limitStreams),
			RingMemory: reached(limitRingMemory),
			Files:      reached(limitFiles),
			Accepts:    reached(limitAccepts),
			Bytes:      reached(limitBytes),
			Operations: reached(limitOperations),
			Disk:       reached(limitDisk),
		},
	}
}
