package bench

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// hostInSlirp is the address by which slirp4netns reaches this machine's
// loopback.
const hostInSlirp = "10.0.2.2"

// slirped makes a side of connections from a network namespace through
// slirp4netns, a TCP/IP stack in a process, as guests with a network card often
// use. The namespace has no other way out, and all connections are to this
// machine.
func (s *scope) slirped(toGuest bool, streams int) (*side, error) {
	l, err := s.listen()
	if err != nil {
		return nil, err
	}
	guest, err := s.behindSlirp()
	if err != nil {
		return nil, err
	}
	var ends []net.Conn
	for range streams {
		address := net.JoinHostPort(hostInSlirp, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
		if _, err := guest.do(request{Op: "connect", Address: address}); err != nil {
			return nil, err
		}
		c, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		s.keep(c)
		ends = append(ends, c)
	}
	there := func(op string) func(int) error {
		return func(n int) error {
			_, err := guest.do(request{Op: op, Bytes: n})
			return err
		}
	}
	reading := func(c net.Conn) func(int) error { return reads(c) }
	writing := func(c net.Conn) func(int) error { return writes(c) }
	f := flow{there("send"), onAll(ends, reading)}
	if toGuest {
		f = flow{onAll(ends, writing), there("receive")}
	}
	return &side{name: "slirp4netns", flows: []flow{f}}, nil
}

// behindSlirp starts a process in a network namespace of its own, with
// slirp4netns as the only way out.
func (s *scope) behindSlirp() (*part, error) {
	slirp, err := exec.LookPath("slirp4netns")
	if err != nil {
		return nil, fmt.Errorf("%w: slirp4netns; apt-get install slirp4netns", errMissing)
	}
	guest, err := s.part("tap", &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: network namespaces of users: %w", errMissing, err)
	}
	if err := s.startSlirp(slirp, guest.cmd.Process.Pid); err != nil {
		return nil, fmt.Errorf("%w: slirp4netns that works here: %w", errMissing, err)
	}
	return guest, nil
}

// onAll makes a function that moves bytes, an equal share on each connection.
func onAll(conns []net.Conn, way func(net.Conn) func(int) error) func(int) error {
	var ways []func(int) error
	for _, c := range conns {
		ways = append(ways, way(c))
	}
	return func(n int) error {
		var work errgroup.Group
		for _, move := range ways {
			work.Go(func() error { return move(n / len(ways)) })
		}
		return work.Wait()
	}
}

// startSlirp gives the network namespace of a process a network card, and waits
// until it is there. The card is gone at the scope's end.
func (s *scope) startSlirp(file string, pid int) error {
	ready, written, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.CommandContext(s.ctx, file,
		"--configure", "--mtu=65520", "--ready-fd=3", fmt.Sprint(pid), "tap0")
	cmd.ExtraFiles = []*os.File{written}
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Start()
	_ = written.Close()
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return fmt.Errorf("%w: %s", cmp.Or(cmd.Wait(), err), bytes.TrimSpace(said.Bytes()))
	}
	s.goes(func() { _ = cmd.Wait() })
	s.keep(closeFunc(func() { _ = cmd.Process.Kill() }))
	return nil
}

// tapPart is the process in the namespace, and has the connections' ends there.
func tapPart(s *scope) func(request) (answer, error) {
	var conns []net.Conn
	return func(q request) (a answer, err error) {
		switch q.Op {
		case "connect":
			var c net.Conn
			if c, err = net.Dial("tcp4", q.Address); err == nil {
				s.keep(c)
				conns = append(conns, c)
			}
		case "send":
			err = onAll(conns, func(c net.Conn) func(int) error { return writes(c) })(q.Bytes)
		case "receive":
			err = onAll(conns, func(c net.Conn) func(int) error { return reads(c) })(q.Bytes)
		default:
			err = errors.New("unknown request " + q.Op)
		}
		return a, err
	}
}
