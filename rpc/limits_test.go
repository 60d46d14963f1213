package rpc_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
)

func TestFileLimit(t *testing.T) {
	t.Parallel()
	_, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, Limits: network.Limits{Files: 2}})
	f, _ := m.Open("f", create)
	g, _ := m.Open("g", create)
	if h, kind := m.Open("h", create); h != nil || kind != message.Other {
		t.Errorf("a third file: %v, kind %v", h, kind)
	}
	f.Close()
	// The place is free when the monitor has ended the pipe.
	m.until(t, "another file can be opened", func() bool {
		h, _ := m.Open("h", create)
		if h == nil {
			return false
		}
		h.Close()
		return true
	})
	g.Close()
	if n := m.server.Stats().FilesLimited; n == 0 {
		t.Error("nothing was counted")
	}
	m.settled(t)
}

func TestByteLimit(t *testing.T) {
	t.Parallel()
	const perSecond, total = 256 << 10, 320 << 10
	dir, share := shared(t, true)
	if err := os.WriteFile(filepath.Join(dir, "f"), pattern(total), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, rpc.Options{Share: share, Limits: network.Limits{Bytes: perSecond}})
	f, _ := m.Open("f", read)
	begun := time.Now()
	n := 0
	for buf := make([]byte, 32<<10); ; {
		k := f.Read(buf)
		if k == 0 {
			break
		}
		n += k
	}
	if least := (total - perSecond - 33<<10) * time.Second / perSecond; n != total || time.Since(begun) < least {
		t.Errorf("%d bytes in %v; want %d in %v at least", n, time.Since(begun), total, least)
	}
	if n := m.server.Stats().BytesLimited; n == 0 {
		t.Error("nothing was counted")
	}
	f.Close()
	m.settled(t)
}

// TestDiskLimit has a guest write until its part of the disk is used up, and
// make folders.
func TestDiskLimit(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	dir, share := shared(t, true)
	m := newMachine(t, rpc.Options{Share: share, Limits: network.Limits{Disk: limit}})
	f, _ := m.Open("f", message.Mode{Append: true, Create: true})
	for f.Write(make([]byte, 50_000)) == 50_000 {
	}
	info, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil || info.Size() > limit {
		t.Error(info, err)
	}
	made := 0
	for ; made < 2*limit/4096; made++ {
		if _, ok := m.Mkdir(fmt.Sprint(made)); !ok {
			break
		}
	}
	if int64(made)*4096+info.Size() > limit {
		t.Errorf("%d folders beside %d bytes", made, info.Size())
	}
	if f, kind := m.Open("g", create); f != nil || kind != message.Other {
		t.Errorf("one more file was made, or kind %d", kind)
	}
	f.Close()
	if f, _ = m.Open("f", create); f == nil || f.Write(make([]byte, 50_000)) != 50_000 {
		t.Error("what was emptied isn't given back")
	}
	f.Close()
	if s := m.server.Stats(); s.DiskLimited < 3 {
		t.Errorf("%+v", s)
	}
	m.settled(t)
}
