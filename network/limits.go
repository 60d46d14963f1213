package network

import (
	"cmp"
	"time"
)

// Limits are how much a guest gets of what costs its host something
// (PROTOCOL.md section 13). A field's zero value is its default. The number of
// streams and the memory of their rings are limits of the table of pipes.
type Limits struct {
	// StreamFiles is how many files may be open at once on a stream of the file
	// system protocol, ReadFileRequests at work included: EMFILE. Default
	// [DefaultStreamFiles].
	StreamFiles int
	// Files is how many files may be open at once on all streams: ENFILE.
	// Default [DefaultFiles].
	Files int
	// Accepts is how many accepts may wait at once, at all listeners: EAGAIN.
	// Default [DefaultAccepts].
	Accepts int
	// Bytes is how many bytes a second may be relayed, of connections, files
	// and datagrams, both ways together. More waits, but for datagrams from the
	// guest: ENOBUFS. Default: no limit.
	Bytes uint64
	// Operations is how many operations a second the guest may ask for: Opens,
	// and requests on the control pipe and those of framed protocols. More is
	// EAGAIN, for datagrams ENOBUFS. Default: no limit.
	Operations uint64
	// Disk is by how many bytes the guest may make files of its host grow. Each
	// file, folder and socket that it makes counts as 4 KiB more: EDQUOT.
	// Default [DefaultDisk].
	Disk uint64
}

// Defaults of [Limits].
const (
	DefaultStreamFiles = 256
	DefaultFiles       = 4096
	DefaultAccepts     = 4096
	DefaultDisk        = 8 << 30
)

// DefaultConnectTimeout is how long an attempt to connect may take: ETIMEDOUT.
const DefaultConnectTimeout = 30 * time.Second

// WithDefaults returns l with its zero values replaced by their defaults.
func (l Limits) WithDefaults() Limits {
	l.StreamFiles = cmp.Or(l.StreamFiles, DefaultStreamFiles)
	l.Files = cmp.Or(l.Files, DefaultFiles)
	l.Accepts = cmp.Or(l.Accepts, DefaultAccepts)
	l.Disk = cmp.Or(l.Disk, DefaultDisk)
	return l
}

// Reached counts how often a guest has reached each limit.
type Reached struct {
	Streams    uint64
	RingMemory uint64 // or the end of the window
	Files      uint64 // of a stream or of all
	Accepts    uint64
	Bytes      uint64 // waits, and datagrams refused
	Operations uint64
	Disk       uint64
}
