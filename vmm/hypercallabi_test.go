package vmm_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/fix-project/arcavm/vmm"
)

// Modes of the guest rpc-calls.
const (
	callsHTTP    = "1"
	callsConnect = "2"
	callsFiles   = "3"
	callsHostile = "4"
	callsPieces  = "5"
)

// asNumber is an address as the guest takes it, and its port.
func asNumber(a netip.AddrPort) (ip, port string) {
	four := a.Addr().As4()
	return fmt.Sprint(binary.LittleEndian.Uint32(four[:])), fmt.Sprint(a.Port())
}

var anyLoopback, _ = asNumber(netip.MustParseAddrPort("127.0.0.1:0"))

func TestHypercallArguments(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-calls", "0", "7", "0xFFFFFFFFFFFFFFFF")
		wantCode(t, g, 7)
		wantLog(t, g, "argument 0: 0", "argument 1: 7", "argument 2: 18446744073709551615")
	})
	g := rpcBoot(t, vmm.Config{}, "rpc-calls")
	wantCode(t, g, 0)
}

// A web server answers many clients at once, on each number of CPUs, and idle
// ones keep no others out.
func TestHypercallHTTP(t *testing.T) {
	const clients = 60
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		g := rpcBoot(t, cfg, "rpc-calls", callsHTTP, anyLoopback, "0", fmt.Sprint(clients))
		addr := g.Addr().String()
		// So many as the guest has threads to spare.
		for range cfg.CPUs - 1 {
			idle, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
		}
		var all errgroup.Group
		all.SetLimit(16)
		for i := range clients - (cfg.CPUs - 1) {
			all.Go(func() error { return rpcRequest(addr, i) })
		}
		if err := all.Wait(); err != nil {
			t.Error(err)
		}
		s := g.VM.Stats()
		if s.RPC.Accepted == 0 || s.Hypercalls["TCP_ACCEPT"] == 0 || s.Hypercalls["PANIC"] != 0 {
			t.Errorf("%d accepted; %v", s.RPC.Accepted, s.Hypercalls)
		}
	})
}

func TestHypercallConnect(t *testing.T) {
	server := rpcBoot(t, vmm.Config{}, "rpc-httpd", "127.0.0.1", "0")
	ip, port := asNumber(netip.MustParseAddrPort(server.Addr().String()))
	g := rpcBoot(t, vmm.Config{CPUs: 2}, "rpc-calls", callsConnect, ip, port)
	wantCode(t, g, 0)
	wantLog(t, g, "sent 18 of 18", "hello, world", "received ")

	// No socket listens there: it looks as if the peer had ended.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ip, port = asNumber(netip.MustParseAddrPort(l.Addr().String()))
	l.Close()
	refused := rpcBoot(t, vmm.Config{}, "rpc-calls", callsConnect, ip, port)
	wantCode(t, refused, 0)
	wantLog(t, refused, "sent 18 of 18", "received 0 in all")
}

func TestHypercallFiles(t *testing.T) {
	share, dir := rpcShare(t, true)
	g := rpcBoot(t, vmm.Config{Share: share}, "rpc-calls", callsFiles)
	wantCode(t, g, 0)
	wantLog(t, g, "open /old: ok", "read 5: hello", "read 0: ", "read 0: ", "open missing: no", "open ../../etc/passwd: no", "open new: ok",
		"written 6", "seek to 2", "read 4: cdef", "seek to 3", "seek to 5", "read 1: f", "seek to 6")
	if b, err := os.ReadFile(filepath.Join(dir, "new")); string(b) != "abcdef" || err != nil {
		t.Errorf("the file has %q, %v", b, err)
	}
	share.Writable = false
	readOnly := rpcBoot(t, vmm.Config{Share: share}, "rpc-calls", callsFiles)
	wantCode(t, readOnly, 0)
	wantLog(t, readOnly, "open /old: ok", "open new: no")
}

// Records of every wrong kind end nothing but themselves.
func TestHypercallHostile(t *testing.T) {
	onCPUs(t, func(t *testing.T, cfg vmm.Config) {
		share, _ := rpcShare(t, true)
		cfg.Share = share
		g := rpcBoot(t, cfg, "rpc-calls", callsHostile, anyLoopback, "0")
		addr := g.Addr().String()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
		if page := get(t, &client, "http://"+addr+"/", http.StatusOK); string(page) != "hello, world" {
			t.Errorf("the page is %q", page)
		}
		wantCode(t, g, 0)
		wantLog(t, g, "beyond RAM: 14")
	})
}
