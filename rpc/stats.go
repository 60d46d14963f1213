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
	Broken         uint64 // pipes that ended because the guest broke a message, a ring or its counts
	LockTimeouts   uint64 // waits for the allocator's lock that were given up
	Looks          uint64 // looks at a ring by the goroutine that looks
	Wakes          uint64 // looks that found something
	Sleeps         uint64 // times that goroutine slept
	Signals        uint64 // interrupts raised
	PipesLimited   uint64 // pipes that were one too many
	FilesLimited   uint64 // files that were one too many
	BytesLimited   uint64 // waits for bytes that there were too many of
	DiskLimited    uint64 // writes, files and folders that the disk's part had no room for
}

type counters struct {
	requests, opened, accepted, connectsFailed, filesRefused atomic.Uint64
	toGuest, fromGuest, broken, signals                      atomic.Uint64
	pipesLimited, filesLimited, bytesLimited, diskLimited    atomic.Uint64
}

// Stats returns a snapshot. It may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := s.open
	s.mu.Unlock()
	return Stats{
		Pipes:          open,
		Opened:         s.opened.Load(),
		Requests:       s.requests.Load(),
		Accepted:       s.accepted.Load(),
		ConnectsFailed: s.connectsFailed.Load(),
		FilesRefused:   s.filesRefused.Load(),
		ToGuest:        s.toGuest.Load(),
		FromGuest:      s.fromGuest.Load(),
		Broken:         s.broken.Load(),
		LockTimeouts:   s.alloc.stuckCount.Load(),
		Looks:          s.watcher.looks.Load(),
		Wakes:          s.watcher.wakes.Load(),
		Sleeps:         s.watcher.sleeps.Load(),
		Signals:        s.signals.Load(),
		PipesLimited:   s.pipesLimited.Load(),
		FilesLimited:   s.filesLimited.Load(),
		BytesLimited:   s.bytesLimited.Load(),
		DiskLimited:    s.diskLimited.Load(),
	}
}
