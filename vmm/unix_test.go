package vmm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// socketIn is an address for a socket in a folder whose own path may be too
// long for one. It is good until the test ends.
func socketIn(t *testing.T, dir, name string) string {
	t.Helper()
	folder, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { folder.Close() })
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), name)
}

func TestUnixConnect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ln, err := net.Listen("unix", socketIn(t, dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	l := ln.(*net.UnixListener)
	t.Cleanup(func() { l.Close() })
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	sockets := openShare(t, dir, false)
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "unix"), Args: []string{"connect", "/s", "hello", "there"}, Sockets: sockets})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	if string(got) != "hello there" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.Write([]byte("an answer")); err != nil {
		t.Error(err)
	}
	c.Close()
	if code, err := g.Wait(); code != 0 || err != nil || g.Console() != "an answer" {
		t.Errorf("the guest ended with %d, %v, and printed %q", code, err, g.Console())
	}
}

func TestUnixListen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "unix"), Args: []string{"listen", "s"}, CPUs: 2, Sockets: openShare(t, dir, true)})
	g.WaitLog("listening at s")
	to := socketIn(t, dir, "s")
	for n := range 5 {
		c, err := net.Dial("unix", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		sent := content(uint64(n), n*30_000)
		go func() {
			c.Write(sent)
			c.(*net.UnixConn).CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes came back, %v; or they differ", len(got), len(sent), err)
		}
	}
	g.VM.Stop()
	if code, err := g.Wait(); code != 0 || err != nil {
		t.Errorf("the guest ended with %d, %v", code, err)
	}
	if _, err := os.Lstat(dir + "/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after the guest's end: %v", err)
	}
}

func TestUnixErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		name, arguments string
		sockets         vmm.Share
		want            string
	}{
		{"no folder", "connect s", vmm.Share{}, "connect: error 2"},
		{"no socket", "connect s", openShare(t, dir, false), "connect: error 2"},
		{"outside", "connect ../s", openShare(t, dir, true), "connect: error 13"},
		{"may not listen", "listen s", openShare(t, dir, false), "listen: error 30"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{Image: vmmtest.Image(t, "unix"), Args: strings.Fields(c.arguments), Sockets: c.sockets})
			if code, err := g.Wait(); code != 1 || err != nil {
				t.Errorf("the guest ended with %d, %v", code, err)
			}
			if !strings.Contains(g.Log(), c.want) {
				t.Errorf("no %q in the log:\n%s", c.want, g.Log())
			}
		})
	}
}
