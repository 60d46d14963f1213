// Package pipes implements the rings of PROTOCOL.md sections 7, 8 and 12 on
// memory that a guest shares.
//
// A [Table] lays out the shared window: a pending bitmap for each CPU, the pipe
// headers, the ring data. [Table.New] makes a pipe and returns the monitor's
// end of it, a [Pipe], which is a [net.Conn] with half-close and with direct
// access to ring memory.
//
// The package knows nothing of KVM, of sockets and of messages. Two functions
// connect it with a virtual machine: the guest's hypercalls arrive at
// [Table.NotifyRead] and [Table.NotifyWrite]; interrupts leave through
// [Options].Doorbell.
//
// # Words
//
// Of a pipe:
//   - end: the monitor's or the guest's part in a pipe. "This end" is the one
//     whose method runs, "the other end" its peer.
//   - half: an end's part in one of the two rings, as producer or as consumer.
//   - turn: the right of one operation to use a half.
//   - cursor: how far an end has come in a ring; its limit is how far it may
//     go.
//   - flag: the word in which an end says that it waits.
//   - look: to read the other end's state and cursor, and to check them.
//   - signal: what one end tells the other: an interrupt to the guest, a
//     notification (hypercall) to the monitor.
//   - to claim: to clear the other end's flag, and so to owe it a signal.
//   - kept back: a signal that isn't sent yet, though the other end waits.
//   - to settle: to reset a broken pipe, and to free one that is finished.
//   - detached: a half whose pipe is finished and whose memory may be
//     another's.
//
// Of the watchdog, which looks for wake-ups that don't come:
//   - audit: the watchdog's visit to a batch of pipes, and to all CPUs.
//   - suspect: an end, pipe or CPU for which one audit found a wake-up missing.
//     The next audit makes up for a wake-up that is missing still.
//   - nudged: signalled by the watchdog, for that reason.
//   - late: made up for while its sender may have had no processor: a CPU of
//     the guest was busy, or the watchdog itself came late.
//   - lost: made up for though nothing was going to send it. Lost wake-ups are
//     bugs.
//   - rescued: a lost wake-up that the guest owed.
//   - forgotten: a lost wake-up that the monitor owed.
//
// # Locks
//
// In the order in which they are taken: watchdog.auditing, Pipe.life, Table.mu,
// half.mu (rd before wr). Two pipes share no lock but Table.mu, which is taken
// only when a pipe is made or freed, and by the watchdog.
package pipes
