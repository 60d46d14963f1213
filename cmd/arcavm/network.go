package main

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// localIPv4 returns the IPv4 addresses of this machine but for its loopback
// ones. It reads them from the local routes, which also have what no interface
// lists.
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
		// Of struct rtmsg: rtm_dst_len, rtm_table, rtm_type.
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
