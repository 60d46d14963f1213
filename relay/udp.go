package relay

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/wire"
)

// UDP returns the handler of protocol 3: a UDP socket, bound or connected. Each
// frame is a datagram. While the guest's ring has no room for the next
// datagram, the kernel's socket buffer holds that and those that follow.
// Datagrams for which that has no room are dropped, and counted.
func UDP() Handler {
	return HandlerFunc(serveUDP)
}

func serveUDP(ctx context.Context, s *Stream) error {
	m, err := wire.DecodeUDPSocket(s.Payload)
	if err != nil {
		return ProtocolError(err)
	}
	u := &udp{stream: s, connected: m.Peer.Addr.IsValid(), addressed: m.Addressed, prefix: wire.HeaderSize + wire.ReceivedDatagramPrefixSize}
	if u.addressed {
		u.prefix = wire.HeaderSize + wire.ReceivedDatagramAtPrefixSize
	}
	conn, err := u.open(ctx, m)
	if conn != nil {
		defer conn.Close()
	}
	if err != nil {
		s.bindFailed("UDP socket failed", err)
		return s.Opened(network.Errno(err), nil)
	}
	m = wire.UDPSocket{Local: endpoint(conn.LocalAddr()), Peer: u.peer}
	s.log(slog.LevelDebug, "UDP socket open", slog.Any("local", conn.LocalAddr()))
	if err := s.Opened(0, wire.AppendUDPSocket(nil, m)); err != nil {
		return err
	}
	return u.relay(ctx, conn)
}

// relay moves datagrams both ways until the guest closes its end, a direction
// fails, or ctx ends.
func (u *udp) relay(ctx context.Context, conn packetSocket) error {
	s := u.stream
	ended, end := context.WithCancel(ctx)
	defer end()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		interrupt(conn)
		close(woken)
	})
	received := make(chan error, len(u.sides))
	for _, side := range u.sides {
		go func() {
			err := side.run(ended.Done())
			if side.gaveWay(err) {
				err = nil
			} else if !s.Pipe.Caused(err) {
				_ = s.Pipe.SetReadDeadline(past)
			}
			received <- err
		}()
	}
	err := u.send(ctx)
	if !stop() {
		<-woken
	}
	// Sent datagrams are sent. Those that haven't been received aren't wanted.
	end()
	interrupt(conn)
	_ = s.Pipe.SetWriteDeadline(past)
	var rerr error // the first one, which ended the others
	for range u.sides {
		rerr = cmp.Or(rerr, <-received)
	}
	switch {
	case ctx.Err() != nil:
		return unix.ECONNRESET
	case errors.Is(err, os.ErrDeadlineExceeded):
		return rerr
	default:
		return err
	}
}

// udp is a guest's socket. Each direction has a goroutine that moves datagrams.
// Both send reports.
type udp struct {
	stream    *Stream
	sides     []*udpSide
	connected bool
	peer      wire.Endpoint // zero if not connected
	addressed bool          // the guest wants ReceivedDatagramAt
	prefix    int           // bytes of a received datagram's frame before its data

	// head is of the frame that the guest sends.
	head [wire.HeaderSize + wire.SendDatagramFromPrefixSize]byte

	dropped uint32 // as the guest was last told; the ring's writer has it
}

// udpSide is a socket of the host. A guest's socket has one, or on a published
// port one for each family, each with a goroutine that receives. Between
// ReserveWrite and CommitWrite a side has the ring for itself.
type udpSide struct {
	*udp
	socket datagrams
	local  *localAddrs
	second bool        // it may give way to another socket of the guest
	gone   atomic.Bool // it has

	lost    uint32 // datagrams, as the kernel last told
	arrived int    // bytes of the datagram that was received last
}

// gaveWay reports whether err says that the second side was closed.
func (u *udpSide) gaveWay(err error) bool {
	if !u.second || !errors.Is(err, net.ErrClosed) {
		return false
	}
	u.gone.Store(true)
	return true
}

// datagrams is a socket, for both directions.
type datagrams interface {
	// receive waits for a datagram, or for a report about one that was sent,
	// and puts it into the guest's ring. An error ends the direction.
	receive() error
	// send sends x and y as one datagram. Without an address in to it goes to
	// the peer; without one in from it goes from an address that the socket
	// chooses.
	send(to wire.Endpoint, from netip.Addr, x, y []byte) error
}

// packetSocket is what net.Conn and net.PacketConn have in common.
type packetSocket interface {
	io.Closer
	LocalAddr() net.Addr
	SetDeadline(t time.Time) error
}

// open binds, or connects. An IPv6 socket serves IPv6 only, whatever the host's
// settings.
func (u *udp) open(ctx context.Context, m wire.UDPSocket) (packetSocket, error) {
	if u.connected && m.Local.Addr.IsValid() {
		return nil, unix.EINVAL
	}
	if u.connected {
		at := m.Peer
		at.Addr = unmapped(at)
		conn, err := network.Check(u.stream.Network().DialContext(ctx, network.Name("udp", at.AddrPort()), at.AddrPort().String()))
		if err != nil {
			return nil, err
		}
		u.peer = endpoint(conn.RemoteAddr())
		return conn, u.side().useConnected(conn)
	}
	at, err := localAddress(m.Local)
	if err != nil {
		return nil, err
	}
	conn, err := network.Check(u.stream.Network().ListenPacket(ctx, network.Name("udp", at), at.String()))
	if err != nil {
		return nil, err
	}
	if err := u.side().useBound(conn); err != nil {
		return conn, err
	}
	if joined, ok := conn.(interface{ SecondPacketConn() network.PacketConn }); ok {
		second := u.side()
		second.second = true
		return conn, second.useBound(joined.SecondPacketConn())
	}
	return conn, nil
}

// side adds a side.
func (u *udp) side() *udpSide {
	side := &udpSide{udp: u}
	u.sides = append(u.sides, side)
	return side
}

// sideFor is the side that a datagram to to goes from.
func (u *udp) sideFor(to wire.Endpoint) *udpSide {
	for _, side := range u.sides[1:] {
		if side.local.host.Is6() == to.Addr.Is6() && to.Addr.IsValid() && !side.gone.Load() {
			return side
		}
	}
	return u.sides[0]
}

// run moves datagrams to the guest. It returns why it has ended.
func (u *udpSide) run(done <-chan struct{}) error {
	for {
		u.arrived = 0
		if err := u.socket.receive(); err != nil {
			return err
		}
		u.stream.spend(done, u.arrived)
	}
}

// reserve waits for room for the frame of a datagram of size bytes, or for the
// whole ring if that is smaller. It returns the place of the frame.
func (u *udp) reserve(size int) (a, b []byte, err error) {
	n := min(u.prefix+size, int(u.stream.Pipe.Descriptor().IncomingSize))
	a, b, err = u.stream.Pipe.ReserveWrite(n)
	if err != nil {
		return nil, nil, err
	}
	a, b = part(a, b, 0, n)
	return a, b, nil
}

// commit sends the frame in a and b, whose n bytes of data are in place. local
// is the address at which the datagram has arrived, as far as that is known.
func (u *udpSide) commit(a, b []byte, m wire.ReceivedDatagram, local wire.Endpoint, n int) {
	lost := m.Dropped - u.lost
	u.lost = m.Dropped
	u.stream.server.count.datagramsDropped.Add(uint64(lost))
	u.dropped += lost
	m.Dropped = u.dropped
	local = u.local.received(m.From, local)
	var prefix [wire.HeaderSize + wire.ReceivedDatagramAtPrefixSize]byte
	if u.addressed {
		wire.AppendReceivedDatagramAtPrefix(prefix[:0], wire.ReceivedDatagramAt{ReceivedDatagram: m, Local: local}, n)
	} else {
		wire.AppendReceivedDatagramPrefix(prefix[:0], m, n)
	}
	x, y := part(a, b, 0, u.prefix)
	copy(y, prefix[copy(x, prefix[:u.prefix]):])
	u.stream.Pipe.CommitWrite(u.prefix + n)
	u.stream.toGuest.Add(uint64(n))
	u.arrived = n
}

// report tells the guest of a datagram that couldn't be sent, or, with request
// 0, of one that came back.
func (u *udp) report(request uint64, status unix.Errno, to wire.Endpoint) error {
	u.stream.server.count.datagramsFailed.Add(1)
	return u.stream.write(func(b []byte) []byte {
		return wire.AppendDatagramError(b, request, wire.DatagramError{Status: uint32(status), To: to})
	})
}

// send sends the guest's datagrams until it closes its end.
func (u *udp) send(ctx context.Context) error {
	pipe := u.stream.Pipe
	for {
		if _, err := io.ReadFull(pipe, u.head[:wire.HeaderSize]); err == io.EOF {
			return nil
		} else if err != nil {
			return truncated(err)
		}
		h, err := wire.DecodeHeader(u.head[:wire.HeaderSize])
		if err != nil {
			return ProtocolError(err)
		}
		to, from, prefix, err := u.readAddresses(h.Kind)
		if err != nil {
			return err
		}
		err, fatal := u.sendData(ctx, to, from, int(h.Length)-prefix)
		if fatal != nil {
			return fatal
		}
		if err != nil {
			u.stream.failed("datagram not sent", err)
			// A guest that has closed its reader takes no reports.
			if err := u.report(h.RequestID, network.Errno(err), to); err != nil && !errors.Is(err, unix.EPIPE) {
				return err
			}
		}
	}
}

// readAddresses reads the prefix bytes before a datagram's data.
func (u *udp) readAddresses(k wire.Kind) (to, from wire.Endpoint, prefix int, err error) {
	switch k {
	case wire.KindSendDatagram:
		prefix = wire.EndpointSize
	case wire.KindSendDatagramFrom:
		prefix = wire.SendDatagramFromPrefixSize
	default:
		return to, from, 0, ProtocolError(errors.New("unexpected " + k.String()))
	}
	p := u.head[wire.HeaderSize:][:prefix]
	if _, err := io.ReadFull(u.stream.Pipe, p); err != nil {
		return to, from, 0, inFrame(err)
	}
	if k == wire.KindSendDatagram {
		to, err = wire.DecodeDestination(p)
	} else {
		to, from, err = wire.DecodeDestinationAndSource(p)
	}
	if err != nil {
		err = ProtocolError(err)
	}
	return to, from, prefix, err
}

// inFrame is truncated for an error within a frame.
func inFrame(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return truncated(err)
}

// maxLarge is how many datagrams that are larger than their stream's ring are
// put together at once, each in a buffer of 64 KiB. Others wait.
const maxLarge = 64

// largeDatagrams are the buffers for these. All streams share them.
type largeDatagrams struct {
	turns chan struct{} // holds a token for each in use
	spare chan []byte
}

func newLargeDatagrams() largeDatagrams {
	return largeDatagrams{make(chan struct{}, maxLarge), make(chan []byte, maxLarge)}
}

// take waits for a buffer. give follows.
func (l *largeDatagrams) take(ctx context.Context) ([]byte, error) {
	select {
	case l.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, unix.ECONNRESET
	}
	select {
	case b := <-l.spare:
		return b, nil
	default:
		return make([]byte, wire.MaxDatagram), nil
	}
}

func (l *largeDatagrams) give(b []byte) {
	l.spare <- b
	<-l.turns
}

// sendData sends the next n bytes of the ring, in place, as one datagram.
// failed is the datagram's own error, fatal the stream's.
func (u *udp) sendData(ctx context.Context, to, from wire.Endpoint, n int) (failed, fatal error) {
	pipe := u.stream.Pipe
	var x, y []byte
	inRing := n > 0 && n <= int(pipe.Descriptor().OutgoingSize)
	if inRing {
		a, b, err := pipe.ReserveRead(n)
		if err != nil {
			return nil, inFrame(err)
		}
		x, y = part(a, b, 0, n)
	} else if n > 0 {
		large, err := u.stream.server.large.take(ctx)
		if err != nil {
			return nil, err
		}
		defer u.stream.server.large.give(large)
		x = large[:n]
		if _, err := io.ReadFull(pipe, x); err != nil {
			return nil, inFrame(err)
		}
	}
	failed = u.sendTo(to, from, x, y)
	if inRing {
		pipe.CommitRead(n)
	}
	if errors.Is(failed, os.ErrDeadlineExceeded) || errors.Is(failed, net.ErrClosed) {
		return nil, failed
	}
	if failed == nil {
		u.stream.fromGuest.Add(uint64(n))
	}
	return failed, nil
}

func (u *udp) sendTo(to, from wire.Endpoint, x, y []byte) error {
	to.Addr = unmapped(to)
	side := u.sideFor(to)
	source, err := side.local.source(to, from)
	if err != nil {
		return err
	}
	switch {
	case u.connected && to.Addr.IsValid():
		return unix.EISCONN
	case !u.connected && !to.Addr.IsValid():
		return unix.EDESTADDRREQ
	case !u.stream.operation():
		return unix.ENOBUFS
	case !u.stream.server.bytes.Allow(len(x) + len(y)):
		u.stream.server.reached(limitBytes, u.stream.Pipe.ID())
		return unix.ENOBUFS
	}
	if err = side.socket.send(to, source, x, y); side.gaveWay(err) {
		return unix.EAFNOSUPPORT
	}
	return err
}

func (u *udpSide) useBound(conn network.PacketConn) (err error) {
	filter, _ := conn.(network.PacketFilter)
	below := conn
	if filter != nil {
		below = filter.NetPacketConn()
	}
	local := endpoint(conn.LocalAddr())
	if socket, ok := below.(*net.UDPConn); ok {
		u.local = newLocalAddrs(local, endpoint(socket.LocalAddr()), u.addressed)
		u.socket, err = newKernelDatagrams(u, socket, filter)
		return err
	}
	u.local = newLocalAddrs(local, wire.Endpoint{}, u.addressed)
	u.socket = &otherDatagrams{
		udp: u, in: make([]byte, wire.MaxDatagram),
		read:  conn.ReadFromUDPAddrPort,
		write: func(b []byte, to wire.Endpoint) (int, error) { return conn.WriteToUDPAddrPort(b, to.AddrPort()) },
	}
	return nil
}

func (u *udpSide) useConnected(conn net.Conn) (err error) {
	u.local = newLocalAddrs(endpoint(conn.LocalAddr()), wire.Endpoint{}, u.addressed)
	if socket := network.AsUDP(conn); socket != nil {
		filter, _ := conn.(network.DatagramFilter)
		u.socket, err = newKernelDatagrams(u, socket, filter)
		return err
	}
	from := u.peer.AddrPort()
	u.socket = &otherDatagrams{
		udp: u, in: make([]byte, wire.MaxDatagram),
		read: func(b []byte) (int, netip.AddrPort, error) {
			n, err := conn.Read(b)
			return n, from, err
		},
		write: func(b []byte, _ wire.Endpoint) (int, error) { return conn.Write(b) },
	}
	return nil
}

// otherDatagrams is a socket of a network that isn't the kernel's. A datagram
// is copied once.
type otherDatagrams struct {
	udp   *udpSide
	in    []byte
	read  func(b []byte) (int, netip.AddrPort, error)
	write func(b []byte, to wire.Endpoint) (int, error)
}

func (d *otherDatagrams) receive() error {
	n, from, err := d.read(d.in)
	n, err = counted(n, len(d.in), err)
	if errno := network.Errno(err); fromNetwork(errno) {
		return d.udp.report(0, errno, d.udp.peer)
	}
	if err != nil {
		return err
	}
	a, b, err := d.udp.reserve(n)
	if err != nil {
		return err
	}
	stored := min(n, len(a)+len(b)-d.udp.prefix)
	x, y := part(a, b, d.udp.prefix, d.udp.prefix+stored)
	copy(y, d.in[copy(x, d.in[:stored]):stored])
	d.udp.commit(a, b, wire.ReceivedDatagram{From: endpoint(net.UDPAddrFromAddrPort(from)), Size: uint32(n)}, wire.Endpoint{}, stored)
	return nil
}

func (d *otherDatagrams) send(to wire.Endpoint, _ netip.Addr, x, y []byte) error {
	if len(y) > 0 { // it wraps in the ring
		x = slices.Concat(x, y)
	}
	_, err := d.write(x, to)
	return err
}

// fromNetwork reports whether an errno is a network's report about a datagram
// that was sent. The socket goes on after it.
func fromNetwork(e unix.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET, unix.ENOPROTOOPT, unix.EMSGSIZE, unix.EACCES:
		return true
	}
	return false
}
