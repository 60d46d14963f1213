package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// Bounds of the file system protocol.
const (
	// maxFileRequests is how many requests of a stream are at work at once.
	// Then the stream isn't read until one is answered.
	maxFileRequests = 32
	// maxFurtherRequests is how many requests are at work on all streams of a
	// virtual machine, beyond one on each.
	maxFurtherRequests = 1024
)

// FileSystem returns the handler of protocol 0: the files of a share, which the
// caller closes. No path and no link leads outside: EACCES. If nothing is
// shared, every path is ENOENT. The handler serves one virtual machine.
func FileSystem(s share.Share) Handler {
	return &fileSystem{
		share: s, gates: share.NewGates(s), further: further{most: maxFurtherRequests},
		listings: make(chan struct{}, maxListings), lists: make(chan struct{}, maxLists),
	}
}

type fileSystem struct {
	share    share.Share
	gates    share.Gates
	warned   sync.Once // that nothing is shared
	further  further
	files    atomic.Int64
	listings chan struct{} // holds a token for each listing
	lists    chan struct{} // holds a token for each ListRequest that is being answered
}

// Serve answers requests, several at once, until the guest closes the pipe.
func (fs *fileSystem) Serve(ctx context.Context, s *Stream) error {
	if err := noPayload(s); err != nil {
		return err
	}
	if err := s.Opened(0, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Calls end when the guest takes no answers any more.
	s.Pipe.OnWriteError(cancel)
	f := &fileStream{
		fileSystem: fs, calls: share.NewCalls(fs.gates, s.server.disk), stream: s, ctx: ctx,
		open: make(map[uint64]*share.File),
	}
	q := requests[fileRequest]{stream: s, most: maxFileRequests, further: &fs.further, read: f.next, answer: f.answer}
	err := q.serve()
	f.closeAll()
	return err
}

// fileStream is a stream of the file system protocol.
type fileStream struct {
	*fileSystem
	calls  share.Calls
	stream *Stream
	ctx    context.Context

	mu      sync.Mutex
	last    uint64 // handle
	open    map[uint64]*share.File
	held    int // files that are open, or may be soon
	listing *listing
}

// fileRequest is a request that has been read.
type fileRequest struct {
	wire.Header
	payload []byte

	// A WriteRequest is done while it is read, straight from the ring. These
	// are its result.
	written uint64
	failure error
}

// next reads a request.
func (f *fileStream) next(in *frames, r *fileRequest) (err error) {
	if r.Header, err = in.header(); err != nil {
		return err
	}
	switch r.Kind {
	case wire.KindWriteRequest:
		return f.write(in, r)
	case wire.KindReadFileRequest, wire.KindOpenFileRequest, wire.KindReadRequest, wire.KindStatRequest, wire.KindListRequest, wire.KindMkdirRequest,
		wire.KindRemoveRequest, wire.KindRenameRequest, wire.KindTruncateRequest, wire.KindSyncRequest, wire.KindCloseRequest:
		r.payload, err = in.payload(int(r.Length))
		return err
	default:
		return unexpected(r.Kind)
	}
}

// answer does a request and sends the answer. Its error is the pipe's, or a
// ProtocolError. Errors of files go to the guest.
func (f *fileStream) answer(r *fileRequest) error {
	if r.Kind == wire.KindWriteRequest {
		return f.done(r, r.written, r.failure)
	}
	if !f.stream.operation() {
		return f.refuse(r, unix.EAGAIN)
	}
	switch r.Kind {
	case wire.KindReadFileRequest:
		m, err := wire.DecodeReadFileRequest(r.payload)
		if err != nil {
			return ProtocolError(err)
		}
		return f.readFile(r, m)
	case wire.KindReadRequest:
		m, err := wire.DecodeReadRequest(r.payload)
		if err != nil {
			return ProtocolError(err)
		}
		return f.read(r, m)
	case wire.KindStatRequest:
		m, err := wire.DecodeStatRequest(r.payload)
		if err != nil {
			return ProtocolError(err)
		}
		return f.stat(r, m)
	case wire.KindListRequest:
		m, err := wire.DecodeListRequest(r.payload)
		if err != nil {
			return ProtocolError(err)
		}
		return f.list(r, m)
	default:
		value, failure, err := f.change(r)
		if err != nil {
			return ProtocolError(err)
		}
		return f.done(r, value, failure)
	}
}

// change does a request whose answer is a FileDone. failure goes to the guest;
// err means a malformed request.
func (f *fileStream) change(r *fileRequest) (value uint64, failure, err error) {
	switch r.Kind {
	case wire.KindOpenFileRequest:
		var m wire.OpenFileRequest
		if m, err = wire.DecodeOpenFileRequest(r.payload); err == nil {
			value, failure = f.openHandle(m)
		}
	case wire.KindMkdirRequest:
		var m wire.MkdirRequest
		if m, err = wire.DecodeMkdirRequest(r.payload); err == nil {
			failure = f.makeFolder(string(m.Path), m.Flags&wire.MkdirParents != 0)
		}
	case wire.KindRemoveRequest:
		var m wire.RemoveRequest
		if m, err = wire.DecodeRemoveRequest(r.payload); err == nil {
			failure = f.remove(string(m.Path))
		}
	case wire.KindRenameRequest:
		var m wire.RenameRequest
		if m, err = wire.DecodeRenameRequest(r.payload); err == nil {
			failure = f.rename(string(m.Old), string(m.New))
		}
	case wire.KindTruncateRequest:
		var m wire.TruncateRequest
		if m, err = wire.DecodeTruncateRequest(r.payload); err == nil {
			failure = f.withFile(m.Handle, func(o *share.File) error { return o.Truncate(f.ctx, m.Size) })
		}
	case wire.KindSyncRequest:
		var m wire.SyncRequest
		if m, err = wire.DecodeSyncRequest(r.payload); err == nil {
			failure = f.withFile(m.Handle, func(o *share.File) error { return o.Sync(f.ctx) })
		}
	case wire.KindCloseRequest:
		var m wire.CloseRequest
		if m, err = wire.DecodeCloseRequest(r.payload); err == nil {
			failure = f.closeHandle(m.Handle)
		}
	}
	return value, failure, err
}

// refuse answers a request that isn't done.
func (f *fileStream) refuse(r *fileRequest, failure error) error {
	switch r.Kind {
	case wire.KindReadFileRequest, wire.KindReadRequest:
		return f.sendFailure(r, 0, failure)
	case wire.KindStatRequest:
		return f.sendInfo(r, wire.FileInfo{}, failure)
	case wire.KindListRequest:
		return f.sendList(r, nil, failure)
	default:
		return f.done(r, 0, failure)
	}
}

func (f *fileStream) done(r *fileRequest, value uint64, failure error) error {
	m := wire.FileDone{Status: f.status(r, failure), Value: value}
	return f.stream.write(func(b []byte) []byte { return wire.AppendFileDone(b, r.RequestID, m) })
}

// status is the errno for a failure, which it counts and logs; 0 for nil.
func (f *fileStream) status(r *fileRequest, failure error) uint32 {
	if failure == nil {
		return 0
	}
	f.stream.server.count.fileErrors.Add(1)
	if errors.Is(failure, share.ErrQuota) {
		f.stream.server.reached(limitDisk, f.stream.Pipe.ID())
	}
	f.stream.notShared(&f.warned, "no folder is shared with the guest", failure)
	f.stream.log(slog.LevelDebug, "request about a file failed", slog.String("request", r.Kind.String()), slog.Any("err", failure))
	return uint32(fileErrno(failure))
}

// holdFile takes the place of one more open file.
func (f *fileStream) holdFile() error {
	limits := &f.stream.server.limits
	f.mu.Lock()
	defer f.mu.Unlock()
	var full error
	switch {
	case f.held >= limits.StreamFiles:
		full = unix.EMFILE
	case f.files.Add(1) > int64(limits.Files):
		f.files.Add(-1)
		full = unix.ENFILE
	default:
		f.held++
		return nil
	}
	f.stream.server.reached(limitFiles, f.stream.Pipe.ID())
	return full
}

func (f *fileStream) dropFile() {
	f.mu.Lock()
	f.held--
	f.mu.Unlock()
	f.files.Add(-1)
}

// openHandle opens a file for the guest.
func (f *fileStream) openHandle(m wire.OpenFileRequest) (handle uint64, err error) {
	if err := f.holdFile(); err != nil {
		return 0, err
	}
	o, err := f.openShared(string(m.Path), m.Flags)
	if err != nil {
		f.dropFile()
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.open[f.last] = o
	return f.last, nil
}

func (f *fileStream) lookup(handle uint64) (*share.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.open[handle]; o != nil {
		return o, nil
	}
	return nil, unix.EBADF
}

func (f *fileStream) withFile(handle uint64, do func(*share.File) error) error {
	o, err := f.lookup(handle)
	if err != nil {
		return err
	}
	return do(o)
}

// closeHandle ends a handle. System calls that are under way end well; later
// requests with it are EBADF.
func (f *fileStream) closeHandle(handle uint64) error {
	f.mu.Lock()
	o := f.open[handle]
	delete(f.open, handle)
	f.mu.Unlock()
	if o == nil {
		return unix.EBADF
	}
	return o.Close(f.dropFile)
}

// closeAll closes the files that the guest has left open. No worker runs any
// more. Folders that stall keep the stream no longer than one call may take.
func (f *fileStream) closeAll() {
	var closing sync.WaitGroup
	for _, o := range f.open {
		closing.Go(func() { _ = o.Close(f.dropFile) })
	}
	closing.Wait()
	f.keepListing(nil)
}
