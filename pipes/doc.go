// Package pipes implements the rings of PROTOCOL.md sections 7, 8 and 12 on memory that a guest shares.
//
// A [Table] lays out the shared window: a pending bitmap for each CPU, the pipe headers, the ring data. [Table.New] makes a pipe and
// returns the monitor's end of it, a [Pipe], which is a [net.Conn] with half-close and with direct access to ring memory.
//
// The package knows nothing of KVM, of sockets and of messages. Two functions connect it with a virtual machine: the guest's hypercalls
// arrive at [Table.NotifyRead] and [Table.NotifyWrite]; interrupts leave through [Options].Doorbell.
//
// Locks, in the order in which they are taken: Table.auditing, Pipe.life, Table.mu, half.mu (rd before wr). Two pipes share no lock but Table.mu,
// which is taken only when a pipe is made or freed.
package pipes
