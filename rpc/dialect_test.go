package rpc_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fix-project/arcavm/rpc"
	"github.com/fix-project/arcavm/rpc/message"
)

// newMachineB is a machine whose guest speaks dialect B.
func newMachineB(t testing.TB, o rpc.Options) *machine {
	t.Helper()
	m := newMachine(t, o)
	m.Dialect = message.DialectB
	return m
}

// request has a client send a line to address and returns what comes back.
func request(address netip.AddrPort) (string, error) {
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

// TestDialectB has a guest listen and connect by the numbers of dialect B, by
// either request first.
func TestDialectB(t *testing.T) {
	t.Parallel()
	listen := func(t *testing.T, m *machine) {
		l, address := m.listen(t)
		got := make(chan string, 1)
		go func() {
			text, err := request(address)
			got <- fmt.Sprint(text, err)
		}()
		s := l.Accept()
		b := make([]byte, 100)
		s.Write(b[:s.Read(b)])
		s.Close()
		if text := wait(t, got, "an answer"); text != "hello\n<nil>" {
			t.Errorf("the client got %q", text)
		}
		l.Close()
	}
	connect := func(t *testing.T, m *machine) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		s := m.Connect("127.0.0.1", uint16(ln.Addr().(*net.TCPAddr).Port))
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("from the guest"))
		s.Close()
		if b, err := io.ReadAll(conn); string(b) != "from the guest" || err != nil {
			t.Errorf("the server got %q, %v", b, err)
		}
		conn.Close()
	}
	for name, steps := range map[string][]func(*testing.T, *machine){
		"listen first": {listen, connect}, "connect first": {connect, listen},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachineB(t, rpc.Options{Args: []string{"k"}})
			m.Args()
			for _, step := range steps {
				step(t, m)
			}
			m.settled(t)
			m.Exit(3)
			if code := wait(t, m.exits, "an exit"); code != 3 {
				t.Errorf("exit code %d", code)
			}
			// Nothing answers an Exit that knows no answer: the next response
			// on the control pipe is that of the next request.
			m.Args()
		})
	}
}

// TestDialectBRefusedOpen opens what can't be opened: a guest of dialect B gets
// a file that is empty, one that hasn't shown its dialect an error.
func TestDialectBRefusedOpen(t *testing.T) {
	t.Parallel()
	dir, folder := shared(t, true)
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMachineB(t, rpc.Options{Share: folder})
	if _, kind := m.Open("missing", message.Mode{Read: true}); kind != message.NotFound {
		t.Errorf("before the dialect is known: %v", kind)
	}
	l, _ := m.listen(t)
	l.Close()
	f, kind := m.Open("missing", message.Mode{Read: true})
	if f == nil {
		t.Fatalf("error %v", kind)
	}
	b := make([]byte, 100_000)
	if n := f.Read(b); n != 0 {
		t.Errorf("read %d bytes of nothing", n)
	}
	if n := f.Write(b); n != len(b) {
		t.Errorf("%d bytes written into nothing", n)
	}
	if at := f.Seek(message.SeekEnd, -7); at != 0 {
		t.Errorf("nothing has an end at %d", at)
	}
	f.Close()
	if f, kind = m.Open("there", message.Mode{Read: true}); f == nil {
		t.Fatalf("error %v", kind)
	}
	if n := f.Read(b); string(b[:n]) != "text" {
		t.Errorf("read %q", b[:n])
	}
	f.Close()
	m.settled(t)
}

// TestControlPipeEnds has the control pipe end in each way in which a guest can
// end it: the virtual machine is told once, in a sentence with the request.
func TestControlPipeEnds(t *testing.T) {
	t.Parallel()
	raw := func(b ...byte) func(*machine) { return func(m *machine) { m.Control.Send(b) } }
	for name, c := range map[string]struct {
		do   func(*machine)
		want string
	}{
		"unknown number":       {raw(9, 1, 2), "request 9 isn't one of dialects A and B; its 3 bytes are 09 01 02"},
		"fits neither dialect": {raw(3, 127, 0, 0, 1), "request 3 isn't one of dialects A and B; its 5 bytes are 03 7f 00 00 01"},
		"dialect is known": {func(m *machine) {
			m.Mkdir("x")
			m.Control.Send([]byte{3, 127, 0, 0, 1, 80})
		}, "request 3 isn't one of dialect A, which this guest speaks; its 6 bytes are 03 7f 00 00 01 50"},
		"long":      {raw(append([]byte{200}, make([]byte, 5000)...)...), "its 5001 bytes are c8 00"},
		"no length": {func(m *machine) { m.Control.Write(make([]byte, 8)) }, "a length of 0"},
		"too large": {func(m *machine) { m.Control.Write([]byte{0, 0, 0, 0, 0, 0, 0, 1}) }, "a length of"},
		"dropped":   {func(m *machine) { m.Control.Drop() }, "dropped"},
		"cursors":   {func(m *machine) { m.Store(m.Control.TxOffset()+8, 1<<60) }, "control pipe"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, rpc.Options{})
			go c.do(m)
			err := wait(t, m.breaks, "the machine to be told")
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
				t.Errorf("%q, want %q", err, c.want)
			}
			m.stop()
			select {
			case err := <-m.breaks:
				t.Errorf("told twice: %v", err)
			default:
			}
		})
	}
	m := newMachine(t, rpc.Options{})
	m.stop()
	select {
	case err := <-m.breaks:
		t.Errorf("the server's own end: %v", err)
	default:
	}
}

// TestDialectBNoMemory asks for more pipes than there may be: even a guest that
// knows no errors gets an answer.
func TestDialectBNoMemory(t *testing.T) {
	t.Parallel()
	m := newMachineB(t, rpc.Options{Pipes: 2})
	m.Listen(loopback, 0)
	if _, ok := m.Ask(message.Listen{IP: loopback}).(message.Err); !ok {
		t.Error("a pipe too many")
	}
}
