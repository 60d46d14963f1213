package emulated

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func keyOf(t *testing.T, file string) (key [32]byte) {
	t.Helper()
	b, err := hex.DecodeString(filepath.Base(file))
	must(t, err)
	copy(key[:], b)
	return key
}

// flip changes a bit of a file.
func flip(t *testing.T, f *os.File, at int64) {
	t.Helper()
	b := make([]byte, 1)
	_, err := f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	must(t, err)
}

// keptSnapshot is a small one, open.
func keptSnapshot(t *testing.T, folder string, key [32]byte) *snapshot {
	t.Helper()
	n, err := makeSnapshot(folder, key, hardware{memory: 16 << 20}, 2_000_000)
	must(t, err)
	defer n.close()
	for _, at := range []int64{0, 5 << 20, 16<<20 - 5} {
		_, err := n.file.WriteAt([]byte("memory"[:5]), at)
		must(t, err)
	}
	must(t, n.keep([]byte("the state")))
	s, err := openSnapshot(folder, key)
	must(t, err)
	t.Cleanup(func() { s.file.Close() })
	return s
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	folder, key := snapshotsHere(t), [32]byte{1, 2, 3}
	if _, err := openSnapshot(folder, key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none is there: %v", err)
	}
	s := keptSnapshot(t, folder, key)
	state, err := s.check()
	if err != nil || string(state) != "the state" || s.KHz != 2_000_000 {
		t.Errorf("%q, %v, %v", state, s.footer, err)
	}
	// Zeros in place of a hole are the same.
	_, err = s.file.WriteAt(make([]byte, 3*pageSize), 1<<20)
	must(t, err)
	if _, err := s.check(); err != nil {
		t.Error(err)
	}
	if _, err := openSnapshot(folder, [32]byte{1}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with another key: %v", err)
	}
}

// No damage is overlooked, wherever it is.
func TestSnapshotDamage(t *testing.T) {
	t.Parallel()
	end := int64(16<<20) + int64(len("the state"))
	at := func(offset int64) func(t *testing.T, f *os.File) {
		return func(t *testing.T, f *os.File) { flip(t, f, offset) }
	}
	for name, damage := range map[string]func(t *testing.T, f *os.File){
		"memory":           at(5 << 20),
		"a hole":           at(9 << 20),
		"the memory's end": at(16<<20 - 1),
		"the state":        at(16<<20 + 3),
		"the magic":        at(end),
		"the key":          at(end + 10),
		"the size":         at(end + 41),
		"the state's size": at(end + 49),
		"the frequency":    at(end + 57),
		"the checksum":     at(end + 65),
		"a lost page": func(t *testing.T, f *os.File) {
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5<<20, pageSize))
		},
		"cut off":  func(t *testing.T, f *os.File) { must(t, f.Truncate(end+40)) },
		"longer":   func(t *testing.T, f *os.File) { must(t, f.Truncate(end+200)) },
		"tiny":     func(t *testing.T, f *os.File) { must(t, f.Truncate(1)) },
		"writable": func(t *testing.T, f *os.File) { must(t, f.Chmod(0o620)) },
		"a lost name": func(t *testing.T, f *os.File) {
			must(t, os.Rename(f.Name(), f.Name()+"x"))
			must(t, os.Mkdir(f.Name(), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder, key := snapshotsHere(t), [32]byte{9}
			damage(t, keptSnapshot(t, folder, key).file)
			s, err := openSnapshot(folder, key)
			if err == nil {
				defer s.file.Close()
				_, err = s.check()
			}
			if !errors.Is(err, errBroken) && !errors.Is(err, unix.EISDIR) {
				t.Errorf("the damage has the error %v", err)
			}
		})
	}
}

// One process makes a snapshot at a time; what one that was killed left behind
// is removed.
func TestSnapshotMaking(t *testing.T) {
	t.Parallel()
	folder := snapshotsHere(t)
	must(t, os.WriteFile(filepath.Join(folder, workPrefix+"1"), nil, 0o600))
	n, err := makeSnapshot(folder, [32]byte{1}, hardware{memory: 1 << 20}, 1)
	must(t, err)
	if _, err := makeSnapshot(folder, [32]byte{2}, hardware{memory: 1 << 20}, 1); !errors.Is(err, errBusy) {
		t.Errorf("a second one: %v", err)
	}
	n.close()
	entries, err := os.ReadDir(folder)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != ".lock" {
		t.Errorf("%v is left", entries)
	}
	must(t, os.Chmod(folder, 0o777))
	if n, err := makeSnapshot(folder, [32]byte{1}, hardware{memory: 1 << 20}, 1); err == nil {
		n.close()
		t.Error("a folder that all can change was taken")
	}
}

func TestSnapshotGivenUp(t *testing.T) {
	t.Parallel()
	folder, key := snapshotsHere(t), [32]byte{7}
	keptSnapshot(t, folder, key)
	giveUp(folder, key)
	if _, err := openSnapshot(folder, key); !errors.Is(err, errHopeless) {
		t.Errorf("once given up: %v", err)
	}
	past := time.Now().Add(-hopelessFor - time.Minute)
	must(t, os.Chtimes(filepath.Join(folder, hex.EncodeToString(key[:])), past, past))
	if _, err := openSnapshot(folder, key); !errors.Is(err, errBroken) {
		t.Errorf("an hour later: %v", err)
	}
	keptSnapshot(t, folder, key)
}

// The folder keeps what was used last.
func TestSnapshotPrune(t *testing.T) {
	t.Parallel()
	folder := snapshotsHere(t)
	for i := range byte(maxSnapshots) {
		s := keptSnapshot(t, folder, [32]byte{i})
		when := time.Now().Add(time.Duration(i)*time.Minute - time.Hour)
		must(t, os.Chtimes(s.file.Name(), when, when))
	}
	s, err := openSnapshot(folder, [32]byte{0}) // used
	must(t, err)
	s.file.Close()
	keptSnapshot(t, folder, [32]byte{100})
	var left []string
	for _, i := range []byte{0, 1, 2, 3, 100} {
		if s, err := openSnapshot(folder, [32]byte{i}); err == nil {
			s.file.Close()
			left = append(left, fmt.Sprint(i))
		}
	}
	if fmt.Sprint(left) != "[0 2 3 100]" {
		t.Errorf("%v are left", left)
	}
}

// What isn't called as a snapshot is, or is no file, stays, and costs no
// snapshot its place.
func TestSnapshotPruneLeavesOthers(t *testing.T) {
	t.Parallel()
	folder, past := snapshotsHere(t), time.Now().Add(-time.Hour)
	var others []string
	for i := range byte(maxSnapshots + 1) {
		file := filepath.Join(folder, fmt.Sprintf("other-%d", i))
		must(t, os.WriteFile(file, []byte("mine"), 0o600))
		key := [32]byte{i}
		full := filepath.Join(folder, hex.EncodeToString(key[:]))
		must(t, os.MkdirAll(filepath.Join(full, "folder"), 0o700))
		others = append(others, file, full)
	}
	for _, name := range others {
		must(t, os.Chtimes(name, past, past))
	}
	keptSnapshot(t, folder, [32]byte{100})
	for _, name := range others {
		if _, err := os.Lstat(name); err != nil {
			t.Error(err)
		}
	}
}

// Leftovers go whatever the folder's name is: [ isn't a pattern's.
func TestSnapshotLeftoversBelowBracket(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(snapshotsHere(t), "a[b")
	must(t, os.Mkdir(folder, 0o700))
	left := filepath.Join(folder, workPrefix+"1")
	must(t, os.WriteFile(left, nil, 0o600))
	n, err := makeSnapshot(folder, [32]byte{1}, hardware{memory: 1 << 20}, 1)
	must(t, err)
	n.close()
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", left, err)
	}
}

// A clock that was wrong doesn't keep snapshots from being made.
func TestSnapshotGivenUpInTheFuture(t *testing.T) {
	t.Parallel()
	folder, key := snapshotsHere(t), [32]byte{8}
	giveUp(folder, key)
	future := time.Now().Add(1000 * time.Hour)
	must(t, os.Chtimes(filepath.Join(folder, hex.EncodeToString(key[:])), future, future))
	if _, err := openSnapshot(folder, key); !errors.Is(err, errBroken) {
		t.Errorf("given up in the future: %v", err)
	}
}
