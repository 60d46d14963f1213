package network_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/netns"
	"github.com/fix-project/arcavm/network"
)

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An address that becomes the host's own while a connect to it is under way
// isn't reached.
func TestAddressDuringConnect(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	near := netns.NewHost(t)
	ln, err := net.Listen("tcp", ":0")
	try(t, err)
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	address, err := netlink.ParseAddr("10.9.0.60/24")
	try(t, err)
	changing := beforeDial{do: func() { try(t, netlink.AddrAdd(near, address)) }}
	c, err := network.NewPolicy(changing, nil, nil).DialContext(t.Context(), "tcp", fmt.Sprint("10.9.0.60:", port))
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("%v, %v; want EACCES", c, err)
	}
}

// beforeDial calls do between the judgement and the connect.
type beforeDial struct {
	network.Host
	do func()
}

func (n beforeDial) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.do()
	return n.Host.DialContext(ctx, network, address)
}

// A zone is a number for the rules, and for package net the name of an
// interface first. An interface whose name is another one's number isn't
// reached by that number.
func TestScopeIsNoName(t *testing.T) {
	if !netns.Inside(t) {
		return
	}
	near := netns.NewHost(t)
	try(t, netlink.LinkSetDown(near))
	try(t, netlink.LinkSetName(near, "1"))
	try(t, netlink.LinkSetUp(near))
	netns.AddAddress(t, near, "fe80::70/64")
	rule, err := network.ParseRule(true, fmt.Sprintf("[fe80::70%%%d]", near.Attrs().Index))
	try(t, err)
	other, err := network.ParseRule(true, "[fe80::70%1]")
	try(t, err)
	server, err := net.ListenPacket("udp6", "[::]:0")
	try(t, err)
	defer server.Close()
	port := server.LocalAddr().(*net.UDPAddr).Port
	policy := network.NewPolicy(network.Host{}, []network.Rule{rule}, nil)
	c, err := policy.DialContext(t.Context(), "udp", fmt.Sprintf("[fe80::70%%%d]:%d", near.Attrs().Index, port))
	try(t, err)
	c.Close()
	for name, policy := range map[string]*network.Policy{"by name": network.NewPolicy(network.Host{}, []network.Rule{other}, nil), "by number": policy} {
		for _, protocol := range []string{"tcp", "udp"} {
			if c, err := policy.DialContext(t.Context(), protocol, fmt.Sprintf("[fe80::70%%1]:%d", port)); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s, %s: %v, %v; want EACCES", name, protocol, c, err)
			}
		}
	}
}
