package vmmtest_test

import (
	"net/netip"
	"testing"

	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// A test that is told of addresses by its own OnListen can wait for them all
// the same.
func TestAddrBesideOnListen(t *testing.T) {
	t.Parallel()
	told := make(chan netip.AddrPort, 1)
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "httpd"), Args: []string{"127.0.0.1:0"},
		OnListen: func(a netip.AddrPort) { told <- a },
	})
	if a, b := g.Addr(), <-told; a != b {
		t.Errorf("Addr is %v, OnListen got %v", a, b)
	}
}
