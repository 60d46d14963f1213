package relay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// controlSize is room for the control messages of a datagram: how many were
// lost, and the local address.
const controlSize = 2*(unix.SizeofCmsghdr+8) + unix.SizeofCmsghdr + unix.SizeofInet6Pktinfo + 4

// message is the argument of recvmsg and sendmsg: a datagram in up to two
// parts, an address, and control messages. It points into itself, so it must
// not be copied, and serves one goroutine.
type message struct {
	header  unix.Msghdr
	parts   [2]unix.Iovec
	name    [unix.SizeofSockaddrInet6]byte
	control [controlSize]byte
}

// data sets where the datagram's bytes are, or go.
func (m *message) data(x, y []byte) {
	n := 0
	for _, p := range [2][]byte{x, y} {
		if len(p) > 0 {
			m.parts[n].Base = &p[0]
			m.parts[n].SetLen(len(p))
			n++
		}
	}
	m.header.Iov = &m.parts[0]
	m.header.SetIovlen(n)
}

// address sets where the datagram goes. Without an address in to it goes to the
// peer.
func (m *message) address(to wire.Endpoint) {
	m.header.Name = &m.name[0]
	binary.BigEndian.PutUint16(m.name[2:], to.Port)
	switch {
	case to.Addr.Is4():
		binary.LittleEndian.PutUint16(m.name[:], unix.AF_INET)
		a := to.Addr.As4()
		copy(m.name[4:], a[:])
		m.header.Namelen = unix.SizeofSockaddrInet4
	case to.Addr.Is6():
		binary.LittleEndian.PutUint16(m.name[:], unix.AF_INET6)
		clear(m.name[4:8])
		a := to.Addr.As16()
		copy(m.name[8:], a[:])
		binary.LittleEndian.PutUint32(m.name[24:], to.Scope)
		m.header.Namelen = unix.SizeofSockaddrInet6
	default:
		m.header.Name, m.header.Namelen = nil, 0
	}
}

// from is the address that the datagram has come from.
func (m *message) from() wire.Endpoint {
	e := wire.Endpoint{Port: binary.BigEndian.Uint16(m.name[2:])}
	switch binary.LittleEndian.Uint16(m.name[:]) {
	case unix.AF_INET:
		e.Addr = netip.AddrFrom4([4]byte(m.name[4:]))
	case unix.AF_INET6:
		e.Addr = netip.AddrFrom16([16]byte(m.name[8:]))
		e.Scope = binary.LittleEndian.Uint32(m.name[24:])
	}
	return e
}

// source sets from which local address the datagram goes. The zero Addr leaves
// it to the kernel.
func (m *message) source(a netip.Addr) {
	m.header.Control = nil
	m.header.SetControllen(0)
	if !a.IsValid() {
		return
	}
	level, kind, size := unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo
	if a.Is6() {
		level, kind, size = unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo
	}
	binary.LittleEndian.PutUint64(m.control[:], uint64(unix.SizeofCmsghdr+size))
	binary.LittleEndian.PutUint32(m.control[8:], uint32(level))
	binary.LittleEndian.PutUint32(m.control[12:], uint32(kind))
	info := m.control[unix.SizeofCmsghdr:][:size]
	// An interface of 0 leaves that to the kernel, or to the destination.
	clear(info)
	if a.Is6() {
		ip := a.As16()
		copy(info, ip[:])
	} else {
		ip := a.As4()
		copy(info[4:], ip[:])
	}
	m.header.Control = &m.control[0]
	m.header.SetControllen(unix.CmsgSpace(size))
}

// told returns what the kernel has told with a datagram: how many the socket
// had lost by then (before, if it doesn't tell), and the local address to
// answer from (the zero Endpoint, if it doesn't tell).
func (m *message) told(before uint32) (dropped uint32, local wire.Endpoint) {
	dropped = before
	rest := m.control[:min(int(m.header.Controllen), len(m.control))]
	for len(rest) >= unix.SizeofCmsghdr {
		size := binary.LittleEndian.Uint64(rest)
		if size < unix.SizeofCmsghdr || size > uint64(len(rest)) {
			break
		}
		level, kind := binary.LittleEndian.Uint32(rest[8:]), binary.LittleEndian.Uint32(rest[12:])
		data := rest[unix.SizeofCmsghdr:size]
		switch {
		case level == unix.SOL_SOCKET && kind == unix.SO_RXQ_OVFL && len(data) >= 4:
			dropped = binary.LittleEndian.Uint32(data)
		case level == unix.SOL_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			local.Addr = netip.AddrFrom4([4]byte(data[4:]))
		case level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			local.Addr = netip.AddrFrom16([16]byte(data))
			if local.Addr.IsLinkLocalUnicast() {
				local.Scope = binary.LittleEndian.Uint32(data[16:])
			}
		}
		rest = rest[min(len(rest), (int(size)+7)&^7):]
	}
	return dropped, local
}

// size returns the size of the next datagram, without waiting for one.
func (m *message) size(fd uintptr) (int, unix.Errno) {
	m.header = unix.Msghdr{}
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&m.header)), unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	return int(n), errno
}

// receive receives into x and y without waiting. It returns the size of the
// datagram, even if that is larger than x and y.
func (m *message) receive(fd uintptr, x, y []byte) (int, unix.Errno) {
	m.data(x, y)
	m.header.Name, m.header.Namelen = &m.name[0], uint32(len(m.name))
	m.header.Control = &m.control[0]
	m.header.SetControllen(len(m.control))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&m.header)), unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	return int(n), errno
}

// send sends without waiting.
func (m *message) send(fd uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&m.header)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}
