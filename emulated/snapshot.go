package emulated

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A snapshot is a machine whose init waits for files, in one file of the cache
// folder: its memory, the state of its devices, and a footer. Memory that the
// machine didn't use is holes. The file's name is its key, the hash of all that
// the machine was made of, so that what has changed is another snapshot.

// snapshotFormat is part of each key.
const snapshotFormat = "arcavm snapshot 1\n"

// The bounds of the folder and of a snapshot. Beyond the first two, snapshots
// are removed, those first that weren't used for longest.
const (
	maxSnapshots      = 4
	maxSnapshotBytes  = 1 << 30 // of the disk, all together
	maxSnapshotMemory = 8 << 30 // of the machine
	maxState          = 64 << 20
)

// footer is the end of a snapshot's file, in little-endian numbers.
type footer struct {
	Magic     [8]byte
	Key       [sha256.Size]byte
	Memory    uint64 // in bytes; where the state begins
	StateSize uint64
	KHz       uint64 // the TSC's frequency
	Sum       uint32 // of all before it, by checksum
	_         uint32
}

var snapshotMagic = [8]byte{'a', 'r', 'c', 'a', 's', 'n', 'a', 'p'}

// snapshot is an open one. Its file may be removed meanwhile.
type snapshot struct {
	footer
	file *os.File
}

// snapshotFolder is the folder for snapshots, which needn't be there.
func snapshotFolder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder to keep snapshots in: %w", err)
	}
	return filepath.Join(cache, "arcavm", "snapshots"), nil
}

// snapshotKey is that of a machine. QEMU and the kernel count by the identities
// of their files, init and the modules by their contents: go run makes a new
// file of the same program each time. base is the archive of both, to be
// continued.
func snapshotKey(c *cargo, qemu string, k kernel, h hardware) (key [sha256.Size]byte, base *archive, err error) {
	sum := sha256.New()
	_, _ = io.WriteString(sum, snapshotFormat)
	fmt.Fprintf(sum, "%q\n%q\n", h.args(), kernelArgs)
	for _, file := range []string{qemu, k.image} {
		if err := addIdentity(sum, file); err != nil {
			return key, nil, err
		}
	}
	if err := addProcessor(sum); err != nil {
		return key, nil, err
	}
	base = newArchive(sum)
	if err := c.writeBase(base); err != nil {
		return key, nil, err
	}
	return [sha256.Size]byte(sum.Sum(nil)), base, nil
}

// addIdentity adds what of a file's status changes when the file does.
func addIdentity(sum hash.Hash, file string) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return &os.PathError{Op: "stat", Path: file, Err: err}
	}
	fmt.Fprintf(sum, "%q %d %d %d %d %d\n", file, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
	return nil
}

// addProcessor adds the kind of the host's processor. QEMU should emulate the
// same on all of them, but no test on one shows that for another.
func addProcessor(sum hash.Hash) error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	first, _, _ := bytes.Cut(info, []byte("\n\n"))
	for line := range bytes.Lines(first) {
		name, _, _ := bytes.Cut(line, []byte("\t"))
		switch string(name) {
		case "vendor_id", "cpu family", "model", "model name", "stepping", "flags":
			sum.Write(line)
		}
	}
	return nil
}

// openSnapshot opens the snapshot with a key. It is for use after check alone.
func openSnapshot(folder string, key [sha256.Size]byte) (*snapshot, error) {
	f, err := os.OpenFile(filepath.Join(folder, hex.EncodeToString(key[:])), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s := &snapshot{file: f}
	if err := s.readFooter(key); err != nil {
		f.Close()
		return nil, err
	}
	// Its time is that of its last use, for prune.
	now := time.Now()
	_ = os.Chtimes(f.Name(), now, now)
	return s, nil
}

// errHopeless is returned for a snapshot that couldn't be made or resumed. An
// empty file with its name says so, for an hour: a busy machine may be the
// cause.
var errHopeless = errors.New("there was no way to make the snapshot or to resume it")

const hopelessFor = time.Hour

// giveUp notes that a snapshot can't be made or resumed.
func giveUp(folder string, key [sha256.Size]byte) {
	name := filepath.Join(folder, hex.EncodeToString(key[:]))
	_ = os.Remove(name)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		f.Close()
	}
}

// errBroken is wrapped by errors that say what is wrong with a snapshot.
var errBroken = errors.New("the snapshot is broken")

func (s *snapshot) readFooter(key [sha256.Size]byte) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: others may have changed it", errBroken)
	}
	// A time to come is of a clock that was wrong: it is no reason to wait.
	age := time.Since(time.Unix(st.Mtim.Unix()))
	if st.Size == 0 && age > -time.Minute && age < hopelessFor {
		return errHopeless
	}
	size := int64(binary.Size(s.footer))
	r := io.NewSectionReader(s.file, st.Size-size, size)
	if err := binary.Read(r, binary.LittleEndian, &s.footer); err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	if s.Magic != snapshotMagic || s.Key != key || s.StateSize > maxState || s.Memory > maxSnapshotMemory ||
		s.Memory+s.StateSize+uint64(size) != uint64(st.Size) {
		return fmt.Errorf("%w: its footer is wrong", errBroken)
	}
	return nil
}

// check returns the state of the devices if nothing in the file is damaged.
func (s *snapshot) check() ([]byte, error) {
	state := make([]byte, s.StateSize)
	if _, err := s.file.ReadAt(state, int64(s.Memory)); err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	sum, err := s.checksum(state)
	if err != nil {
		return nil, err
	}
	if sum != s.Sum {
		return nil, fmt.Errorf("%w: its checksum is wrong", errBroken)
	}
	return state, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const pageSize = 4096

var zeroPage [pageSize]byte

// checksum is that of the memory's pages with their addresses, but for those
// that are zero, of the state, and of the footer. Whether a zero page is a hole
// is up to the file system.
func (s *snapshot) checksum(state []byte) (uint32, error) {
	sum := crc32.New(castagnoli)
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		from, to, err := s.data(at)
		if err != nil {
			return 0, err
		}
		if from == to {
			break
		}
		for at = from; at < to; {
			b := buf[:min(int64(len(buf)), to-at)]
			if _, err := s.file.ReadAt(b, at); err != nil {
				return 0, fmt.Errorf("%w: %w", errBroken, err)
			}
			addPages(sum, at, b)
			at += int64(len(b))
		}
	}
	sum.Write(state)
	f := s.footer
	f.Sum = 0
	return crc32.Update(sum.Sum32(), castagnoli, encoded(f)), nil
}

func addPages(sum hash.Hash32, at int64, b []byte) {
	for page := range slices.Chunk(b, pageSize) {
		if !bytes.Equal(page, zeroPage[:]) {
			var address [8]byte
			binary.LittleEndian.PutUint64(address[:], uint64(at))
			sum.Write(address[:])
			sum.Write(page)
		}
		at += pageSize
	}
}

// data is the next part of the memory that is no hole, as whole pages; it is
// empty if there is no more.
func (s *snapshot) data(at int64) (from, to int64, err error) {
	fd, end := int(s.file.Fd()), int64(s.Memory)
	from, err = unix.Seek(fd, at, unix.SEEK_DATA)
	if err == unix.ENXIO || err == nil && from >= end {
		return end, end, nil
	}
	if err != nil {
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	if to, err = unix.Seek(fd, from, unix.SEEK_HOLE); err != nil {
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	return from &^ (pageSize - 1), min((to+pageSize-1)&^(pageSize-1), end), nil
}

func encoded(f footer) []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, f) // all of it has a fixed size
	return b
}

// newSnapshot is a snapshot that is being made, in a file that another name is
// waiting for.
type newSnapshot struct {
	snapshot
	folder string
	lock   *os.File
}

// errBusy is returned while another process makes a snapshot.
var errBusy = errors.New("another process makes a snapshot")

// workPrefix is that of a file's name until it is whole.
const workPrefix = ".making-"

// makeSnapshot makes the file for a snapshot, to be closed. It holds a lock:
// while one process makes a snapshot, others get errBusy.
func makeSnapshot(folder string, key [sha256.Size]byte, h hardware, khz uint64) (*newSnapshot, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	if err := fitFor(folder); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(folder, ".lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	n := &newSnapshot{folder: folder, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, errBusy
	}
	removeLeftovers(folder)
	n.footer = footer{Magic: snapshotMagic, Key: key, Memory: h.memory, KHz: khz}
	if n.file, err = os.CreateTemp(folder, workPrefix); err == nil {
		err = n.file.Truncate(int64(h.memory))
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// removeLeftovers removes what processes that were killed have left. Its caller
// holds the lock, so none of them goes on.
func removeLeftovers(folder string) {
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), workPrefix) && e.Type().IsRegular() {
			os.Remove(filepath.Join(folder, e.Name()))
		}
	}
}

// leastFree is the space in bytes that must be free for a snapshot, many times
// its size.
const leastFree = 2 << 30

// fitFor returns an error unless a folder can hold snapshots: there is space,
// and only its owner, this user, can change it. On a tmpfs each read of a hole
// in a mapped file would take memory for good.
func fitFor(folder string) error {
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return &os.PathError{Op: "stat", Path: folder, Err: err}
	}
	if st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s can be changed by other users", folder)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: folder, Err: err}
	}
	if fs.Type == unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is on a tmpfs", folder)
	}
	if fs.Bavail*uint64(fs.Bsize) < leastFree {
		return fmt.Errorf("%s: %w", folder, unix.ENOSPC)
	}
	return nil
}

// keep completes the snapshot with the state of the machine, which has written
// its memory, and gives the file its name.
func (n *newSnapshot) keep(state []byte) error {
	n.StateSize = uint64(len(state))
	sum, err := n.checksum(state)
	if err != nil {
		return err
	}
	n.Sum = sum
	if _, err := n.file.WriteAt(append(state, encoded(n.footer)...), int64(n.Memory)); err != nil {
		return err
	}
	if err := os.Rename(n.file.Name(), filepath.Join(n.folder, hex.EncodeToString(n.Key[:]))); err != nil {
		return err
	}
	return prune(n.folder)
}

// close removes the file unless it was kept, and lets others make snapshots.
func (n *newSnapshot) close() {
	if n.file != nil {
		_ = os.Remove(n.file.Name())
		n.file.Close()
	}
	n.lock.Close()
}

// removeSnapshot removes a snapshot that is of no use.
func removeSnapshot(folder string, key [sha256.Size]byte) {
	_ = os.Remove(filepath.Join(folder, hex.EncodeToString(key[:])))
}

// prune keeps the folder within its bounds. Files that aren't called as
// snapshots are, and what is no file, don't count and stay: the folder may be
// another one, behind a link.
func prune(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	type kept struct {
		name  string
		used  int64
		bytes int64
	}
	var all []kept
	for _, e := range entries {
		var st unix.Stat_t
		name := filepath.Join(folder, e.Name())
		key, err := hex.DecodeString(e.Name())
		if err != nil || len(key) != sha256.Size || !e.Type().IsRegular() || unix.Lstat(name, &st) != nil {
			continue
		}
		all = append(all, kept{name, st.Mtim.Nano(), st.Blocks * 512})
	}
	slices.SortFunc(all, func(a, b kept) int { return int(min(max(b.used-a.used, -1), 1)) })
	total := int64(0)
	for i, k := range all {
		if total += k.bytes; i >= maxSnapshots || total > maxSnapshotBytes {
			if err := os.Remove(k.name); err != nil {
				return err
			}
		}
	}
	return nil
}
