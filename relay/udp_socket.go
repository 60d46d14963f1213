package relay

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// kernelDatagrams is a kernel's UDP socket. A datagram goes between socket and
// ring in one system call, even where it wraps in the ring.
type kernelDatagrams struct {
	udp    *udpSide
	raw    syscall.RawConn
	filter network.DatagramFilter // nil: none
	ipv6   bool

	in         message
	tryReceive func(fd uintptr) bool
	receiveErr error

	out     message
	trySend func(fd uintptr) bool
	sendErr unix.Errno
}

// newKernelDatagrams has the kernel count the datagrams that it drops, keep the
// network's reports about those that were sent, and, if the socket has several
// local addresses, tell that of each datagram.
func newKernelDatagrams(u *udpSide, socket *net.UDPConn, filter network.DatagramFilter) (*kernelDatagrams, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	ipv6 := endpoint(socket.LocalAddr()).Addr.Is6()
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = setOptions(int(fd), ipv6, u.local.any) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	d := &kernelDatagrams{udp: u, raw: raw, filter: filter, ipv6: ipv6}
	d.tryReceive = d.receiveNow
	d.trySend = d.sendNow
	return d, nil
}

func setOptions(fd int, ipv6, anyLocal bool) error {
	level, option := unix.SOL_IP, unix.IP_RECVERR
	if ipv6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("ask for errors of datagrams: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err != nil {
		return fmt.Errorf("ask for a count of lost datagrams: %w", err)
	}
	if anyLocal {
		return tellLocal(fd, ipv6)
	}
	return nil
}

// tellLocal has the kernel tell the local address of each datagram.
func tellLocal(fd int, ipv6 bool) error {
	level, option := unix.SOL_IP, unix.IP_PKTINFO
	if ipv6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("ask for the local address of datagrams: %w", err)
	}
	return nil
}

func (d *kernelDatagrams) receive() error {
	if err := d.raw.Read(d.tryReceive); err != nil {
		return err
	}
	return d.receiveErr
}

// receiveNow reports false if there is no datagram.
func (d *kernelDatagrams) receiveNow(fd uintptr) bool {
	// It looks at the size first. The ring must have room before the datagram
	// leaves the kernel's buffer, or a guest that is slow for a moment would
	// lose it.
	size, errno := d.in.size(fd)
	switch errno {
	case unix.EAGAIN:
		return false
	case 0:
		d.receiveErr = d.deliver(fd, size)
	default:
		d.receiveErr = d.reportErrors(fd, errno)
	}
	return true
}

// deliver moves the next datagram, of size bytes, into the ring.
func (d *kernelDatagrams) deliver(fd uintptr, size int) error {
	a, b, err := d.udp.reserve(size)
	if err != nil {
		return err
	}
	x, y := part(a, b, d.udp.prefix, len(a)+len(b))
	size, errno := d.in.receive(fd, x, y)
	if errno != 0 {
		d.udp.stream.Pipe.CommitWrite(0)
		if errno == unix.EAGAIN {
			return nil
		}
		return d.reportErrors(fd, errno)
	}
	from := d.in.from()
	if d.filter != nil {
		d.filter.Received(from.AddrPort())
	}
	dropped, local := d.in.told(d.udp.lost)
	d.udp.commit(a, b, wire.ReceivedDatagram{From: from, Size: uint32(size), Dropped: dropped}, local, min(size, len(x)+len(y)))
	return nil
}

// reportErrors tells the guest the network's reports about datagrams that were
// sent. A system call failed with errno because of the first of them, so errno
// is reported only if the queue of errors is empty.
func (d *kernelDatagrams) reportErrors(fd uintptr, errno unix.Errno) error {
	n, err := d.drainErrors(fd)
	if err == nil && n == 0 {
		err = d.udp.report(0, errno, wire.Endpoint{})
	}
	return err
}

// drainErrors reports the errors in the socket's queue and returns their
// number.
func (d *kernelDatagrams) drainErrors(fd uintptr) (n int, err error) {
	var control [128]byte
	for {
		_, length, _, to, err := unix.Recvmsg(int(fd), nil, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return n, nil
		}
		errno, ok := networkError(control[:length])
		if !ok {
			continue
		}
		if err := d.udp.report(0, errno, destination(to)); err != nil {
			return n, err
		}
		n++
	}
}

// networkError returns the errno in the control messages of a queued error.
// Errors of this kernel don't count: the call that caused them has failed with
// them.
func networkError(control []byte) (unix.Errno, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, false
	}
	for _, m := range messages {
		extended := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if extended && len(m.Data) >= 5 && m.Data[4] != unix.SO_EE_ORIGIN_LOCAL {
			return unix.Errno(binary.LittleEndian.Uint32(m.Data)), true
		}
	}
	return 0, false
}

func destination(a unix.Sockaddr) wire.Endpoint {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return wire.Endpoint{Addr: netip.AddrFrom4(a.Addr), Port: uint16(a.Port)}
	case *unix.SockaddrInet6:
		return wire.Endpoint{Addr: netip.AddrFrom16(a.Addr), Port: uint16(a.Port), Scope: a.ZoneId}
	default:
		return wire.Endpoint{}
	}
}

func (d *kernelDatagrams) send(to wire.Endpoint, from netip.Addr, x, y []byte) error {
	if to.Addr.IsValid() && to.Addr.Is6() != d.ipv6 {
		return unix.EAFNOSUPPORT
	}
	if d.filter != nil {
		if err := d.filter.MaySend(from, to.AddrPort()); err != nil {
			return err
		}
	}
	if to.Addr.IsValid() && to.Addr.IsUnspecified() {
		to.Addr = network.Specified(to.AddrPort()).Addr()
	}
	d.out.address(to)
	d.out.source(from)
	d.out.data(x, y)
	if err := d.raw.Write(d.trySend); err != nil {
		return err
	}
	switch {
	case d.sendErr == 0:
		return nil
	case from.IsValid() && !network.Host{}.Local(from):
		// Kernels have different errors for that.
		return unix.EADDRNOTAVAIL
	}
	return d.sendErr
}

// sendNow reports false if the socket's buffer is full.
func (d *kernelDatagrams) sendNow(fd uintptr) bool {
	// The error may be the report about an earlier datagram. Then this one is
	// still to be sent.
	for range 2 {
		d.sendErr = d.out.send(fd)
		switch d.sendErr {
		case unix.EAGAIN:
			return false
		case 0:
			return true
		}
		// A guest that takes no reports takes none of this datagram either.
		_, _ = d.drainErrors(fd)
	}
	return true
}
