package share

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// maxPiece is how many bytes a call moves at most through a buffer.
	maxPiece = 64 << 10
	// maxNow is how many bytes a call moves at most straight from the page
	// cache, which takes some hundred microseconds. A guest may ask for as many
	// as it has memory.
	maxNow = 1 << 20
)

// pieces are buffers of maxPiece.
var pieces = sync.Pool{New: func() any { return new([maxPiece]byte) }}

// File is a file that a guest has opened. All methods but Close end soon after
// their context, whatever the file system does. They may be called
// concurrently.
type File struct {
	os      *os.File
	gate    *Gate
	quota   *Quota
	account *account // nil if nothing is charged
	regular bool
	append  bool
	closed  atomic.Bool
	waits   atomic.Bool // the file system can't tell when a read would wait
}

// File returns the open file, for calls that don't block and for files that
// aren't regular.
func (f *File) File() *os.File { return f.os }

// Regular reports whether the file is a regular one.
func (f *File) Regular() bool { return f.regular }

// Appends reports whether each write goes to the end of the file.
func (f *File) Appends() bool { return f.append }

// Current as an offset is the file's own, which reads and writes move.
const Current = -1

// Read fills x, then y, from an offset on, or from [Current]. io.EOF means that
// the file has ended before. Bytes in the page cache go straight into x and y.
// Others go through a buffer, as the caller may use x and y for something else
// when ctx has ended.
func (f *File) Read(ctx context.Context, x, y []byte, offset int64) (n int, err error) {
	for len(x)+len(y) > 0 && err == nil {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		if offset > math.MaxInt64-int64(len(x)+len(y)) {
			return n, io.EOF
		}
		var k int
		if k, err = f.readNow(x, y, offset); errors.Is(err, unix.EAGAIN) {
			k, err = f.readLater(ctx, x, y, offset)
		}
		n += k
		if offset != Current {
			offset += int64(k)
		}
		first := min(k, len(x))
		x, y = x[first:], y[k-first:]
	}
	return n, err
}

// readNow reads from the page cache. It is EAGAIN if a read might wait.
func (f *File) readNow(x, y []byte, offset int64) (n int, err error) {
	if f.waits.Load() {
		return 0, unix.EAGAIN
	}
	raw, err := f.os.SyscallConn()
	if err != nil {
		return 0, err
	}
	x = x[:min(len(x), maxNow)]
	y = y[:min(len(y), maxNow-len(x))]
	if cerr := raw.Control(func(fd uintptr) {
		err = retry(func() (err error) {
			n, err = unix.Preadv2(int(fd), [][]byte{x, y}, offset, unix.RWF_NOWAIT)
			return err
		})
	}); cerr != nil {
		return 0, os.ErrClosed
	}
	switch err {
	case nil:
		if n == 0 {
			err = io.EOF
		}
		return n, err
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		f.waits.Store(true)
		err = unix.EAGAIN
	}
	return 0, err
}

// readLater reads a piece, and may wait for the file system.
func (f *File) readLater(ctx context.Context, x, y []byte, offset int64) (int, error) {
	piece := pieces.Get().(*[maxPiece]byte)
	buf := piece[:min(len(x)+len(y), maxPiece)]
	n, err := Do(ctx, f.gate, func() (int, error) {
		if offset == Current {
			return f.os.Read(buf)
		}
		n, err := f.os.ReadAt(buf, offset)
		if n > 0 {
			err = nil // it comes again
		}
		return n, err
	}, nil)
	if ctx.Err() != nil {
		return 0, ctx.Err() // the call may use the buffer still
	}
	copy(y, buf[copy(x, buf[:n]):n])
	pieces.Put(piece)
	return n, err
}

// Write writes b at an offset, or at [Current], or to the end of a file that
// was opened to append. EFBIG: no file can be so long; [ErrQuota].
func (f *File) Write(ctx context.Context, b []byte, offset int64) (n int, err error) {
	for len(b) > 0 && err == nil {
		var k int
		k, err = f.writePiece(ctx, b[:min(len(b), maxPiece)], offset)
		n += k
		b = b[k:]
		if offset != Current {
			offset += int64(k)
		}
	}
	return n, err
}

// writePiece writes a copy of b, as the caller may use b for something else
// when ctx has ended.
func (f *File) writePiece(ctx context.Context, b []byte, offset int64) (int, error) {
	if offset > math.MaxInt64-int64(len(b)) {
		return 0, unix.EFBIG
	}
	piece := pieces.Get().(*[maxPiece]byte)
	buf := piece[:copy(piece[:], b)]
	n, err := Do(ctx, f.gate, func() (n int, err error) {
		err = f.quota.change(f.account, f.stat, func(st *unix.Stat_t) int64 {
			return f.need(st, offset, int64(len(buf)))
		}, func() (err error) {
			if f.append || offset == Current {
				n, err = f.os.Write(buf)
			} else {
				n, err = f.os.WriteAt(buf, offset)
			}
			return err
		})
		return n, err
	}, nil)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	pieces.Put(piece)
	return n, err
}

// need is by how many bytes a write makes a file grow at most.
func (f *File) need(st *unix.Stat_t, offset, n int64) int64 {
	switch {
	case f.append:
		offset = st.Size
	case offset == Current:
		offset, _ = f.os.Seek(0, io.SeekCurrent)
	}
	grown := max(0, offset+n-st.Size)
	if st.Blocks*512 < st.Size {
		grown = max(grown, n) // it may fill a hole
	}
	return grown
}

// Truncate makes a file shorter, or longer: EFBIG, [ErrQuota].
func (f *File) Truncate(ctx context.Context, size uint64) error {
	if size > math.MaxInt64 {
		return unix.EFBIG
	}
	return f.do(ctx, func() error { return f.truncate(int64(size)) })
}

func (f *File) truncate(size int64) error {
	return f.quota.change(f.account, f.stat, func(st *unix.Stat_t) int64 {
		return max(0, size-st.Size)
	}, func() error { return f.os.Truncate(size) })
}

// Sync writes the file's data to the disk.
func (f *File) Sync(ctx context.Context) error { return f.do(ctx, f.os.Sync) }

// Seek sets the offset of [Current], as [os.File.Seek] does.
func (f *File) Seek(ctx context.Context, offset int64, whence int) (int64, error) {
	return Do(ctx, f.gate, func() (int64, error) { return f.os.Seek(offset, whence) }, nil)
}

// Stat returns the file's state.
func (f *File) Stat(ctx context.Context) (unix.Stat_t, error) {
	return Do(ctx, f.gate, f.stat, nil)
}

// Close closes the file, after calls that are under way. It waits for [Grace]
// at most; closing then goes on by itself. after, if not nil, is called when
// the file is closed.
func (f *File) Close(after func()) (err error) {
	result := make(chan error, 1)
	if f.gate.Finish(func() {
		result <- f.close()
		if after != nil {
			after()
		}
	}) {
		err = <-result
	}
	return err
}

// close closes the account first: the file's inode number belongs to no other
// file as long as it is open.
func (f *File) close() error {
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	if f.account != nil {
		f.quota.close(f.account)
	}
	return f.os.Close()
}

func (f *File) do(ctx context.Context, call func() error) error {
	_, err := Do(ctx, f.gate, func() (struct{}, error) { return struct{}{}, call() }, nil)
	return err
}

func (f *File) stat() (st unix.Stat_t, err error) {
	raw, err := f.os.SyscallConn()
	if err != nil {
		return st, err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = retry(func() error { return unix.Fstat(int(fd), &st) })
	}); cerr != nil {
		return st, os.ErrClosed
	}
	return st, err
}
