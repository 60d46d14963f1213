// Package stalled is for tests: a folder of a file system that stops answering,
// like that of a network whose server is gone. It is a FUSE file system with
// nothing behind it, and takes root and /dev/fuse.
package stalled

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// File is the name of a regular file that can be opened, and not read or
// written. A look at any other name, but the folder itself, never ends.
const File = "file"

// Folder is a mounted file system.
type Folder struct {
	Dir string

	server  *exec.Cmd
	end     sync.Once
	waiting atomic.Int64
	arrived chan struct{} // holds a token when waiting has grown
	ended   sync.WaitGroup
}

// Numbers of requests (linux/fuse.h) that are answered, or mustn't be.
const (
	lookup      = 1
	forget      = 2
	getattr     = 3
	open        = 14
	read        = 15
	write       = 16
	release     = 18
	flush       = 25
	initialise  = 26
	opendir     = 27
	releasedir  = 29
	interrupt   = 36
	batchForget = 42
)

const (
	rootNode  = 1
	fileNode  = 2
	headSize  = 40
	valid     = 3600 // seconds
	fileSize  = 1 << 20
	maxLength = 64 << 10

	parallelLookups = 1 << 18 // FUSE_PARALLEL_DIROPS
)

// The server is a process of its own, this program once more: threads that wait
// for it can't be killed, and keep a process that has died, and its
// descriptors.
const (
	roleName   = "ARCAVM_TEST_STALLED"
	deviceFile = 3
	eventsFile = 4
	// longest is how long a server lives if nothing ends it.
	longest = 5 * time.Minute
)

func init() {
	if os.Getenv(roleName) == "" {
		return
	}
	time.AfterFunc(longest, func() { os.Exit(1) })
	serve(os.NewFile(deviceFile, "/dev/fuse"), os.NewFile(eventsFile, "events"))
	os.Exit(0)
}

// New mounts a folder until the test's end, or skips the test.
func New(t testing.TB) *Folder {
	t.Helper()
	f := &Folder{Dir: t.TempDir(), arrived: make(chan struct{}, 1)}
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no folder can be made to stall: %v; it takes root", err)
	}
	defer device.Close()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device.Fd())
	if err := unix.Mount("stalled", f.Dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Skipf("no folder can be made to stall: mount: %v; it takes root", err)
	}
	t.Cleanup(func() {
		f.End()
		if err := unix.Unmount(f.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := f.start(device); err != nil {
		t.Fatal(err)
	}
	return f
}

// start starts the server, which the kernel ends with this process.
func (f *Folder) start(device *os.File) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	events, told, err := os.Pipe()
	if err != nil {
		return err
	}
	f.server = exec.Command(program)
	f.server.Env = append(os.Environ(), roleName+"=1")
	f.server.ExtraFiles = []*os.File{device, told}
	f.server.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	f.ended.Go(func() {
		// Pdeathsig ends the server with the thread that started it.
		runtime.LockOSThread()
		err := f.server.Start()
		told.Close()
		started <- err
		if err == nil {
			_ = f.server.Wait()
		}
	})
	if err := <-started; err != nil {
		events.Close()
		return err
	}
	f.ended.Go(func() {
		defer events.Close()
		b := make([]byte, 512)
		for {
			n, err := events.Read(b)
			if err != nil {
				return
			}
			f.waiting.Add(int64(n))
			select {
			case f.arrived <- struct{}{}:
			default:
			}
		}
	})
	return nil
}

// End fails all requests that wait, and those to come.
func (f *Folder) End() {
	f.end.Do(func() {
		if f.server != nil && f.server.Process != nil {
			_ = f.server.Process.Kill()
		}
		f.ended.Wait()
	})
}

// Waiting returns how many requests have come that are never answered.
func (f *Folder) Waiting() int { return int(f.waiting.Load()) }

// Arrived has a token when that number has grown.
func (f *Folder) Arrived() <-chan struct{} { return f.arrived }

// server answers requests.
type server struct{ device, events *os.File }

func serve(device, events *os.File) {
	f := server{device, events}
	b := make([]byte, maxLength+4096)
	for {
		n, err := f.device.Read(b)
		if err != nil || n < headSize {
			return
		}
		f.answer(b[:n])
	}
}

func (f server) answer(b []byte) {
	opcode := binary.LittleEndian.Uint32(b[4:])
	unique := binary.LittleEndian.Uint64(b[8:])
	node := binary.LittleEndian.Uint64(b[16:])
	var out []byte
	le := binary.LittleEndian
	switch opcode {
	case forget, batchForget, interrupt:
		return
	case lookup:
		name, _, _ := bytes.Cut(b[headSize:], []byte{0})
		if string(name) != File {
			f.stall()
			return
		}
		out = le.AppendUint64(out, fileNode)
		out = le.AppendUint64(out, 0)
		out = le.AppendUint64(le.AppendUint64(out, valid), valid)
		out = attributes(le.AppendUint64(out, 0), fileNode)
	case getattr:
		out = le.AppendUint64(le.AppendUint64(out, valid), 0)
		out = attributes(out, node)
	case open, opendir:
		out = make([]byte, 16)
	case release, releasedir, flush:
	case initialise:
		out = le.AppendUint32(le.AppendUint32(out, 7), 31)
		out = le.AppendUint32(out, 0) // read-ahead
		out = le.AppendUint32(out, parallelLookups)
		out = le.AppendUint32(out, 0)             // background
		out = le.AppendUint32(out, maxLength)     // max_write
		out = append(out, make([]byte, 64-24)...) // the rest
	case read, write:
		f.stall()
		return
	default:
		f.reply(unique, unix.ENOSYS, nil)
		return
	}
	f.reply(unique, 0, out)
}

func (f server) stall() { _, _ = f.events.Write([]byte{0}) }

func (f server) reply(unique uint64, errno unix.Errno, payload []byte) {
	b := binary.LittleEndian.AppendUint32(nil, uint32(16+len(payload)))
	b = binary.LittleEndian.AppendUint32(b, uint32(-int32(errno)))
	b = binary.LittleEndian.AppendUint64(b, unique)
	_, _ = f.device.Write(append(b, payload...))
}

// attributes appends struct fuse_attr.
func attributes(b []byte, node uint64) []byte {
	mode, size := uint32(unix.S_IFREG|0o666), uint64(fileSize)
	if node == rootNode {
		mode, size = unix.S_IFDIR|0o777, 0
	}
	le := binary.LittleEndian
	b = le.AppendUint64(b, node)
	b = le.AppendUint64(b, size)
	b = append(b, make([]byte, 8*4+4*3)...) // blocks, times
	b = le.AppendUint32(b, mode)
	b = le.AppendUint32(b, 1)             // links
	return append(b, make([]byte, 20)...) // owner, device, block size, flags
}
