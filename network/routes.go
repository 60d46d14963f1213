package network

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Routes tells where a network sends packets. A [Network] that can tell has a
// method Routes like [Host.Routes]. The methods of Routes may be called
// concurrently.
type Routes interface {
	// Own reports whether packets of "tcp" or "udp" to an address stay with
	// this machine, or may: the address is a local, broadcast, anycast or
	// multicast one, and not one of a single other machine. from is the source
	// of the packets. The zero AddrPort, the unspecified address and port 0
	// leave that to the kernel, and so does an address of the other family.
	// from's zone is the link that the socket is bound to. A change of the
	// routes counts as soon as it has been made. Own doesn't wait for the
	// network.
	Own(protocol string, from, to netip.AddrPort) (bool, error)
}

// Routes returns the kernel's routes, in the network namespace of the calling
// thread. They hold two descriptors until the garbage collector takes them.
func (Host) Routes() (Routes, error) {
	r := &kernelRoutes{seed: maphash.MakeSeed()}
	var err error
	// The subscription comes first, so that no change is missed.
	if r.changes, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE); err != nil {
		return nil, fmt.Errorf("listen for changes of routes: %w", err)
	}
	if r.asked, err = nl.Subscribe(unix.NETLINK_ROUTE); err != nil {
		r.changes.Close()
		return nil, fmt.Errorf("ask for routes: %w", err)
	}
	return r, nil
}

// kernelRoutes asks the kernel as `ip route get` does, and remembers the
// answers until something changes.
//
// The kernel puts a message about a change into the socket changes before the
// call that made the change returns. Each use of an answer looks there first.
// Messages are taken out in this order: see that there is one, raise version,
// take it. So a caller that finds the socket empty sees the new version, too,
// and an answer under the new version is one from after the change.
//
// Whether a source matters is remembered in the same way, under a version of
// its own, which few changes raise.
type kernelRoutes struct {
	changes *nl.NetlinkSocket
	reading sync.Mutex // held while messages are taken out of changes
	version atomic.Uint64

	asking   sync.Mutex // held while asked is in use
	asked    *nl.NetlinkSocket
	sequence uint32 // of the last request
	answer   [8192]byte

	seed  maphash.Seed
	known [routesKnown]atomic.Pointer[knownRoute]

	sourceVersion atomic.Uint64
	sources       [2]atomic.Pointer[sourceMatters] // by family
}

// routesKnown is how many answers are remembered at most. Each has one place,
// by its hash.
const routesKnown = 256

// routeKey is what an answer depends on: the kernel's rules may look at the
// protocol, at the ports, and at the source.
type routeKey struct {
	addr, source     [16]byte // source: the zero value is any
	link             uint32   // 0: any
	port, sourcePort uint16   // sourcePort: 0 is any
	ipv4             bool
	udp              bool
}

// knownRoute is an answer. It doesn't change.
type knownRoute struct {
	routeKey
	version uint64
	own     bool
}

func (r *kernelRoutes) Own(protocol string, from, to netip.AddrPort) (bool, error) {
	d, err := keyOfRoute(protocol, from, to)
	if err != nil {
		return true, err
	}
	steady := r.look()
	if (d.source != [16]byte{} || d.sourcePort != 0) && steady && !r.bySource(family(to.Addr())) {
		d.source, d.sourcePort = [16]byte{}, 0
	}
	version := r.version.Load()
	place := &r.known[maphash.Comparable(r.seed, d)%routesKnown]
	if k := place.Load(); steady && k != nil && k.version == version && k.routeKey == d {
		return k.own, nil
	}
	own, err := r.ask(routeRequest(d, true))
	if err == unix.EINVAL {
		// EINVAL is the answer of a kernel that doesn't know rules with
		// protocols and ports, of a route that is a black hole, and for a
		// source that isn't this machine's.
		if own, err = r.ask(routeRequest(d, false)); err == unix.EINVAL {
			err = nil
		}
	}
	if err != nil {
		return true, fmt.Errorf("route to %v: %w", to, err)
	}
	place.Store(&knownRoute{d, version, own})
	return own, nil
}

func keyOfRoute(protocol string, from, to netip.AddrPort) (routeKey, error) {
	d := routeKey{addr: to.Addr().As16(), port: to.Port(), ipv4: to.Addr().Is4(), udp: protocol == "udp"}
	zone := to.Addr().Zone()
	if from.IsValid() && from.Addr().Is4() == d.ipv4 {
		if !from.Addr().IsUnspecified() {
			d.source = from.Addr().As16()
		}
		d.sourcePort = from.Port()
		zone = cmp.Or(zone, from.Addr().Zone())
	}
	if zone != "" {
		link, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			return d, fmt.Errorf("route to %v: %w", to, err)
		}
		d.link = uint32(link)
	}
	return d, nil
}

// look takes the messages about changes and raises version for each. It reports
// false if some are left: what is remembered may be out of date.
func (r *kernelRoutes) look() bool {
	defer runtime.KeepAlive(r)
	fd := r.changes.GetFd()
	if quiet(fd) {
		return true
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	// The bound keeps a flood of changes from holding the caller here.
	for range 256 {
		if quiet(fd) {
			return true
		}
		r.version.Add(1)
		// The header is enough to tell what has changed. An error means that
		// messages were lost.
		var head [unix.SizeofNlMsghdr + unix.SizeofRtMsg]byte
		n, _, err := unix.Recvfrom(fd, head[:], unix.MSG_DONTWAIT|unix.MSG_PEEK)
		if err != nil || changesSources(head[:n]) {
			r.sourceVersion.Add(1)
		}
		_, _, _ = unix.Recvfrom(fd, head[:], unix.MSG_DONTWAIT)
	}
	return quiet(fd)
}

// quiet reports whether a socket has nothing to read, and has lost no message.
func quiet(fd int) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p[:], 0)
	return n == 0 && err == nil
}

// ask asks for a route. After an error own is false.
func (r *kernelRoutes) ask(request *nl.NetlinkRequest) (own bool, err error) {
	err = r.exchange(request, func(m syscall.NetlinkMessage) (last bool, err error) {
		own, err = isOwn(m)
		return true, err
	})
	return own, err
}

// exchange makes a request, and hands the messages of the answer to take until
// that reports the last one, or fails.
func (r *kernelRoutes) exchange(request *nl.NetlinkRequest, take func(syscall.NetlinkMessage) (last bool, err error)) error {
	r.asking.Lock()
	defer r.asking.Unlock()
	r.sequence++
	request.Seq = r.sequence
	fd := r.asked.GetFd()
	defer runtime.KeepAlive(r)
	if err := unix.Sendto(fd, request.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// The kernel answers within the send, and goes on with a long answer within
	// each receive. Answers to earlier requests, which a signal may have left,
	// are skipped.
	for {
		n, from, err := unix.Recvfrom(fd, r.answer[:], unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if from, ok := from.(*unix.SockaddrNetlink); !ok || from.Pid != 0 {
			continue
		}
		messages, err := syscall.ParseNetlinkMessage(r.answer[:n])
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Seq != r.sequence {
				continue
			}
			if last, err := take(m); last || err != nil {
				return err
			}
		}
	}
}

// routeRequest asks for the route of all packets to d's address, or, if exact,
// of those with d's protocol, ports and source.
func routeRequest(d routeKey, exact bool) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	family, addr, source := unix.AF_INET6, d.addr[:], d.source[:]
	if d.ipv4 {
		family, addr, source = unix.AF_INET, d.addr[12:], d.source[12:]
	}
	message := unix.RtMsg{Family: uint8(family), Dst_len: uint8(8 * len(addr))}
	bySource := exact && d.source != [16]byte{}
	if bySource {
		message.Src_len = message.Dst_len
	}
	q.AddData(&nl.RtMsg{RtMsg: message})
	q.AddData(nl.NewRtAttr(unix.RTA_DST, addr))
	if exact {
		protocol := byte(unix.IPPROTO_TCP)
		if d.udp {
			protocol = unix.IPPROTO_UDP
		}
		q.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{protocol}))
	}
	if exact && d.port != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, d.port)))
	}
	if exact && d.sourcePort != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, d.sourcePort)))
	}
	if bySource {
		q.AddData(nl.NewRtAttr(unix.RTA_SRC, source))
	}
	if d.link != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, d.link)))
	}
	return q
}

// isOwn reads an answer. An address without a route isn't the host's own: a
// connect fails, and its caller is told so by the kernel.
func isOwn(m syscall.NetlinkMessage) (bool, error) {
	switch {
	case m.Header.Type == unix.RTM_NEWROUTE && len(m.Data) >= unix.SizeofRtMsg:
		switch nl.DeserializeRtMsg(m.Data).Type {
		case unix.RTN_UNICAST, unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
			return false, nil
		}
		return true, nil
	case m.Header.Type == unix.NLMSG_ERROR:
		switch err := answerError(m); err {
		case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.ENODEV:
			return false, nil
		case nil:
		default:
			return false, err
		}
	}
	return false, errors.New("an answer of another kind")
}
