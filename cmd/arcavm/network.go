package main

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// localIPv4 are the IPv4 addresses of this machine, as its local routes have
// them, but for its loopback ones.
func localIPv4() ([]netip.Prefix, error) {
	dump, err := syscall.NetlinkRIB(unix.RTM_GETROUTE, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("ask for this machine's addresses: %w", os.NewSyscallError("netlink", err))
	}
	messages, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return nil, fmt.Errorf("ask for this machine's addresses: %w", err)
	}
	var local []netip.Prefix
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg {
			continue
		}
		// struct rtmsg: the length of the destination, the table, the kind of
		// route.
		bits, table, kind := int(m.Data[1]), m.Data[4], m.Data[7]
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("ask for this machine's addresses: %w", err)
		}
		for _, a := range attributes {
			addr, ok := netip.AddrFromSlice(a.Value)
			if table == unix.RT_TABLE_LOCAL && kind == unix.RTN_LOCAL && a.Attr.Type == unix.RTA_DST && ok && addr.Is4() && !addr.IsLoopback() {
				local = append(local, netip.PrefixFrom(addr, bits))
			}
		}
	}
	return local, nil
}
