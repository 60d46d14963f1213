package relay_test

import (
	"io"
	"sync"
	"testing"

	"github.com/fix-project/arcavm/wire"
)

// Whatever a guest sends on a pipe, the pipe ends when the guest closes it, and is free. The protocols that would reach the network aren't there.
func FuzzDataPipe(f *testing.F) {
	openFiles := wire.AppendOpen(nil, 1, wire.Open{Protocol: wire.ProtocolFileSystem})
	read := wire.AppendReadFileRequest(nil, 2, wire.ReadFileRequest{Length: wire.ToEnd, Path: []byte("file")})
	f.Add(openFiles)
	f.Add(append(openFiles, read...))
	f.Add(append(append(openFiles, read...), read[:20]...))
	f.Add(wire.AppendOpen(nil, 1, wire.Open{Protocol: 9, Payload: []byte("x")}))
	f.Add(wire.AppendHeader(nil, wire.Header{Kind: wire.KindOpen, Length: 0xffffffff}))
	root := shareBytes(f, 10_000)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := start(t, setup{root: root, noNetwork: true, streams: 4, window: 1 << 20})
		c, err := m.tryPipe(4096, 4096, 0)
		if err != nil {
			t.Fatal(err)
		}
		var writing sync.WaitGroup
		writing.Go(func() {
			c.Write(b)
			c.CloseWrite()
		})
		// An end of file, or an error: anything but a deadline.
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Error(err)
		}
		c.Close()
		writing.Wait()
		m.wantFree()
	})
}

func isTimeout(err error) bool {
	timeout, ok := err.(interface{ Timeout() bool })
	return ok && timeout.Timeout()
}
