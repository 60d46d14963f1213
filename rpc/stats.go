package rpc

import "sync/atomic"

// Stats is a snapshot of what a Server has done so far.
type Stats struct {
	Pipes          int    // open now, the control pipe included
	Opened         uint64 // pipes made since the start
	Requests       uint64 // of all kinds
	Accepted       uint64 // connections accepted
	ConnectsFailed uint64 // connections refused, timed out, not found
	FilesRefused   uint64 // files and folders that could not be opened or made
	ToGuest        uint64 // bytes of files and connections that the guest has received
	FromGuest      uint64 // bytes that it has sent
	Broken         uint64 // pipes ended by a broken message, ring or count; senseless calls
	LockTimeouts   uint64 // waits for the allocator's lock that were given up
	Looks          uint64 // looks at a ring by the goroutine that looks
	Wakes          uint64 // looks that found something
	Sleeps         uint64 // times that goroutine slept
	Signals        uint64 // interrupts raised
	PipesLimited   uint64 // pipes that were one too many
	CallsLimited   uint64 // hypercalls that would have waited, and were one too many
	FilesLimited   uint64 // files that were one too many
	BytesLimited   uint64 // waits for bytes that there were too many of
	DiskLimited    uint64 // writes, files and folders that the disk's part had no room for
}

type counters struct {
	requests, opened, accepted, connectsFailed, filesRefused atomic.Uint64
	toGuest, fromGuest, broken, signals                      atomic.Uint64
	pipesLimited, filesLimited, bytesLimited, diskLimited    atomic.Uint64
	callsLimited                                             atomic.Uint64
}

// Stats returns a snapshot. It may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := s.open
	s.mu.Unlock()
	all := s.stats()
	all.Pipes = open
	all.Looks, all.Wakes, all.Sleeps = s.watcher.rings.looks.Load(), s.watcher.rings.wakes.Load(), s.watcher.sleeps.Load()
	return all
}

// Stats returns a snapshot, in which the pipes are what has an id, the requests
// hypercalls. It may be called at any time.
func (c *Calls) Stats() Stats {
	c.mu.Lock()
	open := len(c.objects)
	c.mu.Unlock()
	all := c.stats()
	all.Pipes = open
	return all
}

// stats is what all dialects count.
func (h *host) stats() Stats {
	return Stats{
		Opened:         h.opened.Load(),
		Requests:       h.requests.Load(),
		Accepted:       h.accepted.Load(),
		ConnectsFailed: h.connectsFailed.Load(),
		FilesRefused:   h.filesRefused.Load(),
		ToGuest:        h.toGuest.Load(),
		FromGuest:      h.fromGuest.Load(),
		Broken:         h.broken.Load(),
		Signals:        h.signals.Load(),
		PipesLimited:   h.pipesLimited.Load(),
		CallsLimited:   h.callsLimited.Load(),
		FilesLimited:   h.filesLimited.Load(),
		BytesLimited:   h.bytesLimited.Load(),
		DiskLimited:    h.diskLimited.Load(),
		LockTimeouts:   h.alloc.stuckCount.Load(),
	}
}
