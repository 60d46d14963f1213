package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest/client"
	"github.com/fix-project/arcavm/wire"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	s, answer, err := f.Open(soon(t), echoProtocol, []byte("payload"))
	try(t, err)
	if string(answer) != "payload" {
		t.Errorf("Opened has %q", answer)
	}
	if s.LocalAddr().Network() != "pipe" || s.RemoteAddr().Network() != "pipe" {
		t.Errorf("from %v to %v", s.LocalAddr(), s.RemoteAddr())
	}
	exchange(t, s, strings.Repeat("text", 100_000)[:60_000])
}

func TestDial(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	for _, c := range []struct{ network, listen, name string }{
		{"tcp", "127.0.0.1:0", ""},
		{"tcp", "[::1]:0", ""},
		{"tcp", "127.0.0.1:0", "localhost"},
		{"tls", "127.0.0.1:0", ""},
		{"tls", "127.0.0.1:0", "localhost"},
	} {
		l, err := net.Listen("tcp", c.listen)
		try(t, err)
		if c.network == "tls" {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{f.authority.Issue(t, nil)}})
		}
		t.Cleanup(func() { _ = l.Close() })
		go serveEcho(l)
		address := l.Addr().String()
		if c.name != "" {
			_, port, _ := net.SplitHostPort(address)
			address = net.JoinHostPort(c.name, port)
		}
		conn, err := f.Dial(soon(t), c.network, address)
		try(t, err)
		if conn.RemoteAddr().String() != l.Addr().String() || conn.LocalAddr().Network() != "tcp" {
			t.Errorf("%s %s: from %v to %v", c.network, address, conn.LocalAddr(), conn.RemoteAddr())
		}
		if secure := conn.TLS().Version != 0; secure != (c.network == "tls") {
			t.Errorf("%s: TLS version %#x", c.network, conn.TLS().Version)
		}
		exchange(t, conn, "text")
	}
}

func TestDialOptions(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	to := hostListener(t, "tcp", "127.0.0.1:0").Addr().(*net.TCPAddr).AddrPort()
	m := wire.Connect{
		Endpoint: wire.Endpoint{Addr: to.Addr(), Port: to.Port()},
		Options:  &wire.TCPOptions{Flags: wire.TCPDelay, KeepAlive: 60},
	}
	conn, err := f.With(client.Rings{Outgoing: 4096, Incoming: 8192}).DialTCP(soon(t), m)
	try(t, err)
	if d := conn.Descriptor(); d.OutgoingSize != 4096 || d.IncomingSize != 8192 {
		t.Errorf("rings of %d and %d bytes", d.OutgoingSize, d.IncomingSize)
	}
	exchange(t, conn, "text")
}

func TestUnix(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	hostListener(t, "unix", filepath.Join(f.dir, "host"))
	conn, err := f.Dial(soon(t), "unix", "host")
	try(t, err)
	if conn.RemoteAddr().String() != "host" {
		t.Errorf("to %v", conn.RemoteAddr())
	}
	exchange(t, conn, "text")

	l, err := f.Listen(soon(t), "unix", "guest")
	try(t, err)
	defer l.Close()
	go serveEcho(l)
	c, err := net.Dial("unix", filepath.Join(f.dir, "guest"))
	try(t, err)
	exchange(t, c.(*net.UnixConn), "text")
}

func TestListen(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	for _, network := range []string{"tcp", "tls"} {
		l, err := f.Listen(soon(t), network, "127.0.0.1:0")
		try(t, err)
		l.Ahead = 3
		go serveEcho(l)
		var clients sync.WaitGroup
		for i := range 10 {
			clients.Go(func() {
				c, err := net.DialTimeout("tcp", l.Addr().String(), patience)
				if err != nil {
					t.Error(err)
					return
				}
				var end interface {
					net.Conn
					CloseWrite() error
				} = c.(*net.TCPConn)
				if network == "tls" {
					end = tls.Client(c, &tls.Config{RootCAs: f.authority.Pool, ServerName: "server.test"})
				}
				exchange(t, end, fmt.Sprint("text ", i))
			})
		}
		clients.Wait()
		try(t, l.Close())
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// Package net/http serves on a listener, and asks through a dialled connection.
func TestHTTP(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	l, err := f.Listen(soon(t), "tcp", "127.0.0.1:0")
	try(t, err)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "page of ", r.RemoteAddr)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return f.Dial(ctx, network, address)
	}}
	request, err := http.NewRequestWithContext(soon(t), "GET", "http://"+l.Addr().String(), nil)
	try(t, err)
	answer, err := (&http.Client{Transport: transport}).Do(request)
	try(t, err)
	body, err := io.ReadAll(answer.Body)
	if err != nil || !strings.HasPrefix(string(body), "page of 127.0.0.1:") {
		t.Errorf("got %q, %v", body, err)
	}
	_ = answer.Body.Close()
	transport.CloseIdleConnections()
	_ = server.Close()
	serving.Wait()
}

func TestPackets(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	bound, err := f.ListenPacket(soon(t), "udp", "127.0.0.1:0")
	try(t, err)
	defer bound.Close()
	connected, err := f.DialPacket(soon(t), "udp", bound.LocalAddr().String())
	try(t, err)
	defer connected.Close()
	for _, c := range []*client.PacketConn{bound, connected} {
		try(t, c.SetDeadline(time.Now().Add(patience)))
	}
	// Sizes make frames wrap in the ring.
	for i, size := range []int{0, 1, 1000, 30_000, 40_000, 50_000} {
		data := strings.Repeat(fmt.Sprint(i), size)
		_, err = io.WriteString(connected, data)
		try(t, err)
		b := make([]byte, 60_000)
		n, from, err := bound.ReadFrom(b)
		if err != nil || string(b[:n]) != data || from.String() != connected.LocalAddr().String() {
			t.Fatalf("got %d bytes from %v, %v; want %d", n, from, err, size)
		}
		_, err = bound.WriteTo(b[:n], from)
		try(t, err)
		// What has no room is lost.
		if n, err = connected.Read(b[:n/2]); err != nil || string(b[:n]) != data[:size/2] {
			t.Errorf("%d of %d bytes came back: %v", n, size, err)
		}
	}
	if bound.RemoteAddr() != nil || connected.RemoteAddr().String() != bound.LocalAddr().String() {
		t.Errorf("peers are %v and %v", bound.RemoteAddr(), connected.RemoteAddr())
	}
}

func TestPacketsTellLocalAddress(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	any4 := netip.MustParseAddr("0.0.0.0")
	bound, err := f.OpenUDP(soon(t), wire.UDPSocket{Local: wire.Endpoint{Addr: any4}, Addressed: true})
	try(t, err)
	defer bound.Close()
	port := bound.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	host, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port).String())
	try(t, err)
	defer host.Close()
	try(t, host.SetDeadline(time.Now().Add(patience)))
	try(t, bound.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(host, "question")
	try(t, err)
	b := make([]byte, 100)
	m, err := bound.Receive(b)
	if err != nil || string(m.Data) != "question" || m.Local.AddrPort().String() != host.RemoteAddr().String() {
		t.Fatalf("got %q at %v, %v", m.Data, m.Local, err)
	}
	try(t, bound.Send(wire.SendDatagramFrom{
		SendDatagram: wire.SendDatagram{To: m.From, Data: []byte("answer")}, From: m.Local,
	}))
	if n, err := host.Read(b); err != nil || string(b[:n]) != "answer" {
		t.Errorf("got %q, %v", b[:n], err)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	for _, c := range []struct {
		network, host string
		want          []netip.Addr
		err           error
	}{
		{"ip", "127.0.0.9", []netip.Addr{netip.MustParseAddr("127.0.0.9")}, nil},
		{"ip4", "localhost", []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil},
		{"ip6", "127.0.0.9", nil, syscall.ENODATA},
		{"ip", "", nil, syscall.ENOENT},
		{"ip", strings.Repeat("a", 300), nil, syscall.ENOENT},
		{"dns", "localhost", nil, net.UnknownNetworkError("dns")},
	} {
		got, err := f.Resolve(soon(t), c.network, c.host)
		if !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s %.20q: %v, %v; want %v, %v", c.network, c.host, got, err, c.want, c.err)
		}
	}
	names, err := f.ResolveAddr(soon(t), netip.MustParseAddr("127.0.0.1"))
	if err != nil || !slices.Contains(names, "localhost") {
		t.Errorf("127.0.0.1 is %q, %v", names, err)
	}
}

func TestStdio(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	c, err := f.Stdio(soon(t))
	try(t, err)
	defer c.Close()
	if _, err := f.Stdio(soon(t)); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("the second: %v", err)
	}
	var typing sync.WaitGroup
	typing.Go(func() { _, _ = io.WriteString(f.typed, "typed") })
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "typed" {
		t.Errorf("read %q, %v", b, err)
	}
	typing.Wait()
	_, err = io.WriteString(c, "shown")
	try(t, err)
	if _, err := io.ReadFull(f.printed, b); err != nil || string(b) != "shown" {
		t.Errorf("written %q, %v", b, err)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	text, err := f.ReadFile(soon(t), "file")
	if err != nil || string(text) != "content" {
		t.Errorf("got %q, %v", text, err)
	}
	// Small rings, so that frames are larger than these.
	files, err := f.With(client.Rings{Outgoing: 4096, Incoming: 4096}).Files(soon(t))
	try(t, err)
	defer files.Close()
	try(t, files.SetDeadline(time.Now().Add(patience)))
	try(t, files.MkdirAll("a/b"))
	try(t, files.Mkdir("a/c"))
	file, err := files.Open("a/b/new", wire.OpenRead|wire.OpenWrite|wire.OpenCreate)
	try(t, err)
	data := []byte(strings.Repeat("0123456789", 20_000))
	if n, err := file.WriteAt(data, 3); n != len(data) || err != nil {
		t.Errorf("%d written, %v", n, err)
	}
	try(t, file.Truncate(150_000))
	try(t, file.Sync())
	info, err := file.Stat()
	if err != nil || info.Size != 150_000 {
		t.Errorf("%d bytes, %v", info.Size, err)
	}
	got := make([]byte, 200_000)
	n, err := file.ReadAt(got, 3)
	if n != 149_997 || err != io.EOF || string(got[:n]) != string(data[:n]) {
		t.Errorf("%d bytes read, %v", n, err)
	}
	if n, err := file.ReadAt(got[:10], 13); n != 10 || err != nil || string(got[:10]) != "0123456789" {
		t.Errorf("%q, %v", got[:n], err)
	}
	try(t, file.Close())
	try(t, files.Rename("a/b/new", "a/moved"))
	whole, err := files.ReadFile("a/moved")
	if err != nil || len(whole) != 150_000 {
		t.Errorf("%d bytes, %v", len(whole), err)
	}
	try(t, os.Symlink("moved", filepath.Join(f.dir, "a/link")))
	entries, err := files.ReadDir("a")
	var names []string
	for _, e := range entries {
		names = append(names, string(e.Name))
	}
	if err != nil || !slices.Equal(names, []string{"b", "c", "link", "moved"}) {
		t.Errorf("%q, %v", names, err)
	}
	to, err := files.Stat("a/link")
	link, err2 := files.Lstat("a/link")
	if err != nil || err2 != nil || to.Mode&syscall.S_IFMT != syscall.S_IFREG || link.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		t.Errorf("%o, %v; %o, %v", to.Mode, err, link.Mode, err2)
	}
	for _, path := range []string{"a/link", "a/moved", "a/b", "a/c", "a"} {
		try(t, files.Remove(path))
	}
}

// Each refusal keeps its errno.
func TestRefusals(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{StreamLimit: 40})
	taken := hostListener(t, "tcp", "127.0.0.1:0").Addr().String()
	gone := closedPort(t)
	files, err := f.Files(soon(t))
	try(t, err)
	defer files.Close()
	small := f.With(client.Rings{Outgoing: 1000, Incoming: 4096})
	large := f.With(client.Rings{Outgoing: 64 << 20, Incoming: 64 << 20})
	for name, c := range map[string]struct {
		do   func(context.Context) error
		want error
	}{
		"rings that can't be": {func(ctx context.Context) error { _, err := small.Pipe(ctx); return err }, syscall.EINVAL},
		"a full window":       {func(ctx context.Context) error { _, err := large.Pipe(ctx); return err }, syscall.ENOMEM},
		"no handler":          {func(ctx context.Context) error { _, _, err := f.Open(ctx, 0xffff, nil); return err }, syscall.EPROTONOSUPPORT},
		"a payload too long": {func(ctx context.Context) error {
			_, _, err := f.Open(ctx, echoProtocol, make([]byte, 5000))
			return err
		}, syscall.EMSGSIZE},
		"nobody listens":       {dials(f, "tcp", gone), syscall.ECONNREFUSED},
		"nobody listens (TLS)": {dials(f, "tls", gone), syscall.ECONNREFUSED},
		"no UNIX socket":       {dials(f, "unix", "none"), syscall.ENOENT},
		"a file, no socket":    {dials(f, "unix", "file"), syscall.ECONNREFUSED},
		"a network of no kind": {dials(f, "sctp", gone), net.UnknownNetworkError("sctp")},
		"the port is taken":    {listens(f, "tcp", taken), syscall.EADDRINUSE},
		"another's address":    {listens(f, "tcp", "192.0.2.1:0"), syscall.EADDRNOTAVAIL},
		"the path is taken":    {listens(f, "unix", "file"), syscall.EADDRINUSE},
		"listen on no network": {listens(f, "sctp", taken), net.UnknownNetworkError("sctp")},
		"UDP at another's address": {func(ctx context.Context) error {
			_, err := f.ListenPacket(ctx, "udp", "192.0.2.1:0")
			return err
		}, syscall.EADDRNOTAVAIL},
		"packets of no network": {func(ctx context.Context) error {
			_, err := f.ListenPacket(ctx, "ip", "127.0.0.1:0")
			return err
		}, net.UnknownNetworkError("ip")},
		"no file":        {func(ctx context.Context) error { _, err := f.ReadFile(ctx, "none"); return err }, os.ErrNotExist},
		"a folder":       {func(ctx context.Context) error { _, err := f.ReadFile(ctx, "/"); return err }, syscall.EISDIR},
		"out of it":      {func(context.Context) error { _, err := files.Stat("../x"); return err }, syscall.EACCES},
		"it exists":      {func(context.Context) error { return files.Mkdir("file") }, syscall.EEXIST},
		"a short page":   {func(context.Context) error { _, err := files.List("/", "", 100); return err }, syscall.EINVAL},
		"no such handle": {func(context.Context) error { return files.File(99).Close() }, syscall.EBADF},
		"read a handle":  {func(context.Context) error { _, err := files.File(99).ReadAt(nil, 0); return err }, syscall.EBADF},
	} {
		if err := c.do(soon(t)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	for name, address := range map[string]string{
		"no port": "127.0.0.1", "no number": "localhost:http", "too large": "localhost:65536", "no host": ":80",
		"a name too long": strings.Repeat("a", 300) + ":80", "a zone with a name": "[fe80::1%eth0]:80",
	} {
		var wrong *net.AddrError
		if err := dials(f, "tcp", address)(soon(t)); !errors.As(err, &wrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.wantPipes(t, 2) // control, files
}

// closedPort is an address without a listener.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	try(t, err)
	defer l.Close()
	return l.Addr().String()
}

func dials(f *fixture, network, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := f.Dial(ctx, network, address)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
}

func listens(f *fixture, network, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		l, err := f.Listen(ctx, network, address)
		if err == nil {
			_ = l.Close()
		}
		return err
	}
}

// A refused accept is that call's error, and the listener goes on.
func TestAcceptRefused(t *testing.T) {
	t.Parallel()
	// Slots: control, listener, one connection.
	f := start(t, pipes.Options{StreamLimit: 3})
	l, err := f.Listen(soon(t), "tcp", "127.0.0.1:0")
	try(t, err)
	defer l.Close()
	host, err := net.Dial("tcp", l.Addr().String())
	try(t, err)
	defer host.Close()
	c, err := l.AcceptConn()
	try(t, err)
	if _, err := l.Accept(); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("without a slot: %v", err)
	}
	if c.RemoteAddr().String() != host.LocalAddr().String() || c.LocalAddr().String() != host.RemoteAddr().String() {
		t.Errorf("from %v to %v", c.RemoteAddr(), c.LocalAddr())
	}
	_ = c.Close()
	_ = host.Close()
	f.wantPipes(t, 2)
	again, err := net.Dial("tcp", l.Addr().String())
	try(t, err)
	defer again.Close()
	if c, err = l.AcceptConn(); err != nil {
		t.Errorf("with a slot: %v", err)
	}
	_ = c.Close()
}

// An error of a datagram comes with the address that it was sent to, and the
// socket goes on.
func TestPacketErrors(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	c, err := f.ListenPacket(soon(t), "udp", "127.0.0.1:0")
	try(t, err)
	defer c.Close()
	try(t, c.SetDeadline(time.Now().Add(patience)))
	// Each is answered when the one before has been.
	for _, e := range []struct {
		send func() error
		to   string
		want syscall.Errno
	}{
		{func() error { _, err := c.Write([]byte("x")); return err }, "<nil>", syscall.EDESTADDRREQ},
		{func() error { _, err := c.WriteTo(make([]byte, 65_535), c.LocalAddr()); return err }, c.LocalAddr().String(), syscall.EMSGSIZE},
		{func() error { _, err := c.WriteTo(nil, &net.UDPAddr{IP: net.IPv6loopback, Port: 9}); return err }, "[::1]:9", syscall.EAFNOSUPPORT},
	} {
		try(t, e.send())
		_, err := c.Receive(nil)
		var op *net.OpError
		if !errors.Is(err, e.want) || !errors.As(err, &op) || fmt.Sprint(op.Addr) != e.to {
			t.Errorf("got %v, want %v of %s", err, e.want, e.to)
		}
	}
	if _, err := c.WriteTo(make([]byte, 70_000), c.LocalAddr()); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("more than a frame has: %v", err)
	}
	if _, err := c.WriteTo(nil, &net.TCPAddr{}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("to a TCP address: %v", err)
	}
	_, err = c.WriteTo([]byte("x"), c.LocalAddr())
	try(t, err)
	if n, from, err := c.ReadFrom(make([]byte, 9)); n != 1 || err != nil || from.String() != c.LocalAddr().String() {
		t.Errorf("%d from %v, %v", n, from, err)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	l, err := f.Listen(soon(t), "tcp", "127.0.0.1:0")
	try(t, err)
	defer l.Close()
	p, err := f.ListenPacket(soon(t), "udp", "127.0.0.1:0")
	try(t, err)
	defer p.Close()
	s, _, err := f.Open(soon(t), echoProtocol, nil)
	try(t, err)
	defer s.Close()
	for name, c := range map[string]struct {
		set  func(time.Time) error
		wait func() error
		free func() error
	}{
		"Accept":  {l.SetDeadline, func() error { _, err := l.Accept(); return err }, func() error { return dialOnce(l.Addr()) }},
		"Receive": {p.SetReadDeadline, func() error { _, err := p.Receive(nil); return err }, func() error { _, err := p.WriteTo(nil, p.LocalAddr()); return err }},
		"Read":    {s.SetReadDeadline, func() error { _, err := s.Read(make([]byte, 1)); return err }, func() error { _, err := s.Write([]byte{1}); return err }},
	} {
		for _, d := range []time.Duration{-time.Second, time.Millisecond} {
			try(t, c.set(time.Now().Add(d)))
			if err := c.wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// It goes on where it was.
		try(t, c.set(time.Now().Add(patience)))
		try(t, c.free())
		if err := c.wait(); err != nil {
			t.Errorf("%s, afterwards: %v", name, err)
		}
	}
}

func dialOnce(to net.Addr) error {
	c, err := net.Dial(to.Network(), to.String())
	if err == nil {
		err = c.Close()
	}
	return err
}

// A context that ends, ends what waits; its pipe goes back.
func TestContexts(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, do := range map[string]func() error{
		"Open":    func() error { _, _, err := f.Open(ended, echoProtocol, nil); return err },
		"Dial":    func() error { return dials(f, "tcp", "127.0.0.1:9")(ended) },
		"Listen":  func() error { return listens(f, "tcp", "127.0.0.1:0")(ended) },
		"Resolve": func() error { _, err := f.Resolve(ended, "ip", "localhost"); return err },
		"Read":    func() error { _, err := f.ReadFile(ended, "file"); return err },
	} {
		if err := do(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var opening sync.WaitGroup
	for range 10 {
		opening.Go(func() {
			if _, _, err := f.Open(ctx, muteProtocol, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("an Open without an answer: %v", err)
			}
		})
	}
	for range 10 {
		<-f.muted
	}
	cancel()
	opening.Wait()
	f.wantPipes(t, 1)
}

// wantPipes waits until only that many pipes are left.
func (f *fixture) wantPipes(t *testing.T, n int) {
	t.Helper()
	late := time.Now().Add(patience)
	for f.Guest.Table.Stats().Open != n {
		if time.Now().After(late) {
			t.Fatalf("%d pipes, want %d", f.Guest.Table.Stats().Open, n)
		}
		runtime.Gosched()
	}
}

// A request on the control pipe that is given up costs no later one its answer,
// and its pipe goes back.
func TestRequestGivenUp(t *testing.T) {
	t.Parallel()
	held := &holder{asked: make(chan struct{}), begin: make(chan struct{})}
	g, err := newGuest()
	try(t, err)
	m, err := client.Start(g, func(control *pipes.Pipe) client.Server {
		held.table, held.control = g.Table, control
		return held
	})
	try(t, err)
	defer func() { try(t, m.Close()) }()
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		<-held.asked
		cancel()
	}()
	if _, err := m.Pipe(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(held.begin)
	p, err := m.Pipe(soon(t))
	try(t, err)
	if p.ID() != held.ids[1] {
		t.Errorf("got pipe %v of %v", p.ID(), held.ids)
	}
	if _, err := g.Attach(p.Descriptor()); err != nil {
		t.Error(err)
	}
	_ = p.Close()
}

// holder is a monitor that answers requests for pipes from begin on. It closes
// asked when the first one has come.
type holder struct {
	table   *pipes.Table
	control *pipes.Pipe
	asked   chan struct{}
	begin   chan struct{}
	ids     []pipes.ID
}

func (h *holder) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.control.Reset(syscall.ECONNRESET) })
	defer stop()
	for first := true; ; first = false {
		header, payload, err := client.ReadFrame(h.control)
		if err != nil {
			return nil
		}
		if first {
			close(h.asked)
			select {
			case <-h.begin:
			case <-ctx.Done():
			}
		}
		m, err := wire.DecodeNewStreamRequest(payload)
		if err != nil {
			return err
		}
		p, err := h.table.New(m.OutgoingSize, m.IncomingSize, 0)
		if err != nil {
			return err
		}
		h.ids = append(h.ids, p.ID())
		d := p.Descriptor()
		info := wire.DataStreamInfo{Pipe: wire.Descriptor{
			ID: uint64(d.ID), Header: d.Header, Outgoing: d.Outgoing, Incoming: d.Incoming,
			OutgoingSize: d.OutgoingSize, IncomingSize: d.IncomingSize,
		}}
		if _, err := h.control.Write(wire.AppendDataStreamInfo(nil, header.RequestID, info)); err != nil {
			return nil
		}
		p.OnReadError(func() { _ = p.Close() })
	}
}

// Everything at once, from many goroutines.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{StreamLimit: 200})
	to := hostListener(t, "tcp", "127.0.0.1:0").Addr().String()
	l, err := f.Listen(soon(t), "tcp", "127.0.0.1:0")
	try(t, err)
	var serving sync.WaitGroup
	for range 4 {
		serving.Go(func() { serveEcho(l) })
	}
	files, err := f.Files(soon(t))
	try(t, err)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			c, err := f.Dial(soon(t), "tcp", to)
			if err != nil {
				t.Error(err)
				return
			}
			exchange(t, c, fmt.Sprint("dialled ", i))
		})
		all.Go(func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			exchange(t, c.(*net.TCPConn), fmt.Sprint("accepted ", i))
		})
		all.Go(func() {
			if text, err := files.ReadFile("file"); err != nil || string(text) != "content" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
	all.Wait()
	try(t, files.Close())
	try(t, l.Close())
	serving.Wait()
	f.wantPipes(t, 1)
}

// What waits ends when the machine does.
func TestStop(t *testing.T) {
	t.Parallel()
	f := start(t, pipes.Options{})
	l, err := f.Listen(soon(t), "tcp", "127.0.0.1:0")
	try(t, err)
	p, err := f.ListenPacket(soon(t), "udp", "127.0.0.1:0")
	try(t, err)
	var waiting sync.WaitGroup
	for name, wait := range map[string]func() error{
		"Accept":  func() error { _, err := l.Accept(); return err },
		"Receive": func() error { _, err := p.Receive(nil); return err },
		"Open":    func() error { _, _, err := f.Open(context.Background(), muteProtocol, nil); return err },
	} {
		waiting.Go(func() {
			if err := wait(); err == nil {
				t.Errorf("%s: no error", name)
			}
		})
	}
	<-f.muted
	try(t, f.Stop())
	waiting.Wait()
	if _, err := f.Pipe(soon(t)); err == nil {
		t.Error("a pipe after the end")
	}
}
