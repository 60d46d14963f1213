package relay

import (
	"maps"
	"sync/atomic"
)

// Stats is a snapshot of what a Server has done so far.
type Stats struct {
	Opened           map[uint16]uint64 // streams that handlers took, by protocol
	Refused          uint64            // streams whose Open was answered with an errno
	Accepted         uint64            // connections accepted
	ConnectsFailed   uint64            // connections refused, timed out, not found
	HandshakesFailed uint64            // connections to TLS listeners that came to nothing
	Denied           uint64            // connects, listens and datagrams that the policy refused
	DatagramsDropped uint64            // UDP datagrams lost because a guest didn't read
	FileErrors       uint64            // requests about files that were answered with an errno
	ProtocolErrors   uint64            // pipes reset with EPROTO
	ToGuest          uint64            // bytes relayed from sockets and files
	FromGuest        uint64            // bytes relayed to sockets and files
	Streams          int               // pipes that the monitor has not closed yet, the control pipe not counted
}

type counters struct {
	opened           map[uint16]uint64 // guarded by Server.mu
	refused          atomic.Uint64
	accepted         atomic.Uint64
	connectsFailed   atomic.Uint64
	handshakesFailed atomic.Uint64
	denied           atomic.Uint64
	datagramsDropped atomic.Uint64
	fileErrors       atomic.Uint64
	protocolErrors   atomic.Uint64
}

// traffic counts bytes each way.
type traffic struct{ toGuest, fromGuest uint64 }

func (t *traffic) add(s *Stream) {
	t.toGuest += s.toGuest.Load()
	t.fromGuest += s.fromGuest.Load()
}

// Stats returns a snapshot. It may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	bytes := s.closed
	for _, st := range s.streams {
		bytes.add(st)
	}
	return Stats{
		Opened:           maps.Clone(s.count.opened),
		Refused:          s.count.refused.Load(),
		Accepted:         s.count.accepted.Load(),
		ConnectsFailed:   s.count.connectsFailed.Load(),
		HandshakesFailed: s.count.handshakesFailed.Load(),
		Denied:           s.count.denied.Load(),
		DatagramsDropped: s.count.datagramsDropped.Load(),
		FileErrors:       s.count.fileErrors.Load(),
		ProtocolErrors:   s.count.protocolErrors.Load(),
		ToGuest:          bytes.toGuest,
		FromGuest:        bytes.fromGuest,
		Streams:          len(s.streams),
	}
}
