package emulated

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// snapshotsHere returns a folder for snapshots, or skips the test.
func snapshotsHere(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "snapshots")
	must(t, os.Mkdir(folder, 0o700))
	if err := fitFor(folder); err != nil {
		t.Skipf("no snapshots: %v", err)
	}
	return folder
}

// wantSteps checks which steps a run has, and which it hasn't.
func wantSteps(t *testing.T, r Result, has, hasNot string) {
	t.Helper()
	named := func(name string) bool {
		return slices.ContainsFunc(r.Steps, func(s Step) bool { return s.Name == name })
	}
	if !named(has) || named(hasNot) {
		t.Errorf("there is to be %q and no %q: %v", has, hasNot, r.Steps)
	}
}

const (
	madeStep    = "snapshot of the booted machine kept"
	resumedStep = "Linux resumed"
	bootedStep  = "init started"
)

// A program sees the same in a resumed machine as in a booted one, but for the
// random numbers.
func TestResume(t *testing.T) {
	t.Parallel()
	folder := snapshotsHere(t)
	data := t.TempDir()
	must(t, os.WriteFile(filepath.Join(data, "file"), bytes.Repeat([]byte("0123456789abcdef"), 100_000), 0o640))
	must(t, os.Symlink("file", filepath.Join(data, "link")))
	must(t, os.Link(filepath.Join(data, "file"), filepath.Join(data, "again")))
	must(t, os.Mkdir(filepath.Join(data, "folder"), 0o711))
	describing := program("describe", "a", "\xFF")
	describing.Dir = "/some/where"
	describe := func(folder string) (string, Result) {
		var out bytes.Buffer
		result, err := runHere(t.Context(), t, Config{
			Programs:  []Program{program("random"), describing},
			Files:     []File{{Name: "/data", Source: data}, {Name: "/tmp/hidden", Data: []byte("x")}, {Name: "/dev/hidden", Data: []byte("x")}},
			Outbound:  true,
			Stdout:    &out,
			Stderr:    os.Stderr,
			snapshots: folder,
		})
		must(t, err)
		return out.String(), result
	}
	first, result := describe(folder)
	wantSteps(t, result, madeStep, bootedStep)
	second, result := describe(folder)
	wantSteps(t, result, resumedStep, madeStep)
	third, result := describe("/proc/none")
	wantSteps(t, result, bootedStep, resumedStep)
	random := map[string]bool{}
	var seen []string
	for _, out := range []string{first, second, third} {
		line, rest, _ := strings.Cut(out, "\n")
		for _, word := range strings.Fields(line) {
			random[word] = true
		}
		seen = append(seen, rest)
	}
	if len(random) != 6 {
		t.Errorf("numbers in three machines: %v", random)
	}
	if diff := cmp.Diff(seen[2], seen[0]); diff != "" {
		t.Errorf("a program sees (-booted +resumed):\n%s", diff)
	}
	if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
		t.Errorf("a program sees (-first +second):\n%s", diff)
	}
}

// The memory is what was asked for, and a snapshot's machines have few sizes.
func TestResumable(t *testing.T) {
	t.Parallel()
	none, err := resumable(Config{})
	must(t, err)
	few, err := resumable(Config{Memory: 1 << 20})
	must(t, err)
	more, err := resumable(Config{Memory: 250 << 20, Outbound: true})
	must(t, err)
	if none.memory < baseMemory+filesRoom || few.memory != more.memory || more.memory < none.memory+250<<20 {
		t.Errorf("%v, %v, %v", none, few, more)
	}
	if none.network || !more.network {
		t.Errorf("%v, %v", none, more)
	}
	for _, memory := range []uint64{maxSnapshotMemory, maxSnapshotMemory + 1, math.MaxUint64} {
		if h, err := resumable(Config{Memory: memory}); !errors.Is(err, errTooLarge) && h.memory > maxSnapshotMemory {
			t.Errorf("%d bytes: %v, %v", memory, h, err)
		}
	}
}

// What is wrong with a snapshot costs time, and nothing else.
func TestResumeBroken(t *testing.T) {
	t.Parallel()
	folder := snapshotsHere(t)
	try := func(has, hasNot string) {
		t.Helper()
		result, err := runHere(t.Context(), t, Config{Programs: []Program{program("exit7")}, snapshots: folder})
		must(t, err)
		if len(result.Exits) != 1 || result.Exits[0].Code != 7 {
			t.Errorf("%+v", result.Exits)
		}
		wantSteps(t, result, has, hasNot)
	}
	change := func(change func(s *snapshot)) {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(folder, "[0-9a-f]*"))
		must(t, err)
		if len(names) != 1 {
			t.Fatalf("there are %q", names)
		}
		f, err := os.OpenFile(names[0], os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		s := &snapshot{file: f}
		must(t, s.readFooter(keyOf(t, names[0])))
		change(s)
	}
	try(madeStep, bootedStep)
	change(func(s *snapshot) { flip(t, s.file, int64(s.Memory)+100) })
	try(bootedStep, resumedStep) // it is removed
	try(madeStep, bootedStep)
	change(func(s *snapshot) { // whole, and of no use
		state := make([]byte, s.StateSize)
		sum, err := s.checksum(state)
		must(t, err)
		s.Sum = sum
		_, err = s.file.WriteAt(append(state, encoded(s.footer)...), int64(s.Memory))
		must(t, err)
	})
	try(bootedStep, resumedStep)
	try(bootedStep, resumedStep) // it isn't tried again
}

// A signal that comes while the machine is resumed is for its program.
func TestResumeSignal(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 1)
	signals <- unix.SIGINT
	result, err := runHere(t.Context(), t, Config{Programs: []Program{program("exit7")}, Signals: signals})
	must(t, err)
	if result.Exits[0].Signal != unix.SIGINT {
		t.Errorf("%+v", result.Exits)
	}
}

// Files that init can't unpack are the kernel's to unpack, and the snapshot is
// for the next run.
func TestResumeOddFiles(t *testing.T) {
	t.Parallel()
	folder, data := snapshotsHere(t), t.TempDir()
	must(t, os.Symlink("/nowhere", filepath.Join(data, "link")))
	for _, files := range [][]File{
		nil,
		{{Name: "/data", Source: data}, {Name: "/data/link/file", Data: []byte("x")}},
		nil,
	} {
		result, err := runHere(t.Context(), t, Config{Programs: []Program{program("exit7")}, Files: files, snapshots: folder})
		must(t, err)
		if files != nil {
			wantSteps(t, result, bootedStep, resumedStep)
		} else {
			wantSteps(t, result, resumedStep, bootedStep)
		}
	}
}
