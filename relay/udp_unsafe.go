package relay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/wire"
)

// message is what recvmsg and sendmsg work with: a datagram in up to two parts, an address and, received, a count of lost datagrams. It must
// stay where it is, and serves one goroutine.
type message struct {
	header  unix.Msghdr
	parts   [2]unix.Iovec
	name    [unix.SizeofSockaddrInet6]byte
	control [unix.SizeofCmsghdr + 8]byte
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

// address sets where the datagram goes; without an address in to, to the peer.
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

// from is where the datagram came from.
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

// dropped is how many datagrams the socket had lost when this one came; before, if the kernel says nothing.
func (m *message) dropped(before uint32) uint32 {
	level, kind := binary.LittleEndian.Uint32(m.control[8:]), binary.LittleEndian.Uint32(m.control[12:])
	if m.header.Controllen < unix.SizeofCmsghdr+4 || level != unix.SOL_SOCKET || kind != unix.SO_RXQ_OVFL {
		return before
	}
	return binary.LittleEndian.Uint32(m.control[unix.SizeofCmsghdr:])
}

// receive receives into x and y without waiting. It returns how long the datagram is, even if that is longer than x and y.
func (m *message) receive(fd uintptr, x, y []byte, flags int) (int, unix.Errno) {
	m.data(x, y)
	m.header.Name, m.header.Namelen = &m.name[0], uint32(len(m.name))
	m.header.Control = &m.control[0]
	m.header.SetControllen(len(m.control))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&m.header)), uintptr(flags|unix.MSG_DONTWAIT))
	return int(n), errno
}

// send sends without waiting.
func (m *message) send(fd uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&m.header)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}
