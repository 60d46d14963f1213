// Package client is what a program in a guest calls: it dials, listens, opens
// files, sends datagrams and resolves names by the messages of PROTOCOL.md
// sections 9 to 11, over a guest end in Go ([guest.Guest]), without KVM. It
// serves tests of what stands at the monitor's end, benchmarks, and embedding
// programs that test a handler of their own.
//
// [Start] runs a monitor's half and a client of it in one process. The ends
// that a [Client] returns are net.Conn, net.Listener and net.PacketConn with
// deadlines and half-close. An error that the monitor answers with keeps its
// errno: errors.Is(err, syscall.ECONNREFUSED) works. A context bounds what
// waits until a stream is there; afterwards the deadlines of the stream do.
//
// Words of this package:
//
//	client   the guest's half: asks for pipes, opens streams on them
//	control  the control pipe, on which a client asks for other pipes
//	monitor  the other half: answers on the control pipe, serves streams
//	open     to name the protocol of a new pipe, and to wait for the answer
//	stream   a pipe and the protocol that it was opened for
//	status   how a message says what failed: 0 or an errno
package client
