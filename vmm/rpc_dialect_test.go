package vmm_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/vmm"
)

// A kernel that numbers its requests without Mkdir serves, connects, and reads
// files.
func TestRPCDialectB(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-httpd", "--dialect-b", "127.0.0.1", "0", "40")
		addr := g.Addr().String()
		var all errgroup.Group
		all.SetLimit(8)
		for i := range 40 {
			all.Go(func() error { return rpcRequest(addr, i) })
		}
		if err := all.Wait(); err != nil {
			t.Error(err)
		}
		wantCode(t, g, 0)
		wantLog(t, g, "served 40 connections; allocator as before")
	})

	server := rpcBoot(t, vmm.Config{}, "rpc-httpd", "127.0.0.1", "0")
	host, port, _ := strings.Cut(server.Addr().String(), ":")
	client := rpcBoot(t, vmm.Config{}, "rpc-connect", "--dialect-b", host, port, "GET / HTTP/1.1\r\n\r\n")
	wantCode(t, client, 0)
	wantLog(t, client, "hello, world")

	share, _ := rpcShare(t, false)
	files := rpcBoot(t, vmm.Config{Share: share}, "rpc-file", "--dialect-b", "open:r:/old", "read:100", "close")
	wantCode(t, files, 0)
	wantLog(t, files, "read:100: 5 bytes: hello")
}

// A guest whose control pipe breaks ends with a report that names the request,
// rather than waiting for ever for an answer.
func TestRPCUnknownRequest(t *testing.T) {
	g := rpcBoot(t, vmm.Config{}, "rpc-file", "request:9")
	_, err := g.Wait()
	var crash *vmm.CrashError
	if !errors.As(err, &crash) || !strings.Contains(crash.Reason, "request 9 isn't one of dialects A and B; its 1 bytes are 09") {
		t.Errorf("the guest ended with %v", err)
	}
}
