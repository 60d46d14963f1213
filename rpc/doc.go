// Package rpc is the monitor's half of Arca's older ABIs, which kernel images
// without an ABI note speak.
//
// # Words
//
//   - dialect: how a guest asks. In A and B by messages, in C by hypercalls.
//   - pipe: in A and B, two rings in RAM, by which requests and responses go.
//   - call: in C, a hypercall that asks for something about a socket or a file.
//   - record: in C, the 32 or 48 bytes in RAM that a call names, with what is
//     asked for, room for the answer, and the byte done.
//
// # Model
//
// A guest has pipes. A pipe is two byte rings in the guest's own RAM: the guest
// writes a request to one, the monitor a response to the other, and then comes
// the next request. The control pipe exists from the start; what is opened
// through it (a file, a listener, a connection) gets a pipe of its own, and so
// does each connection that a listener accepts. Package message has the
// encoding.
//
// All of RAM belongs to a buddy allocator whose state lies in RAM too. The
// monitor lays it out before the start; then both sides allocate and free in it
// under one spin lock. A ring lies in a block of it, after two reference
// counts. Each side drops its end by setting its flag and giving up its
// reference, and the side that gives up the last one frees the block.
//
// These guests never signal: a [Server] has to look. One goroutine looks at all
// rings whose guest owes a message, at a ring that has just been busy after
// microseconds, at one that has been quiet less and less. Rings where the
// monitor owes the message are not looked at. A guest that notifies even once
// is looked at only when it notifies, and gets interrupts (GSI 0), from then
// on.
//
// A guest that drops its end while the monitor waits for a peer is noticed when
// the wait is over: all the rings that wait for a peer would have to be looked
// at.
//
// A pipe is served by a goroutine of its own, which sleeps while there is
// nothing to do; a pipe that waits for a peer or a disk keeps no other from
// going on. Bytes of files and connections go from ring memory to the kernel
// and back without a copy in between.
//
// # Dialects
//
// Kernels number the requests on the control pipe in two ways. Both have 0
// GetArgs, 1 Exit, 2 Open. Dialect A goes on with 3 Mkdir, 4 Listen, 5 Connect;
// dialect B, which is older, with 3 Listen, 4 Connect, and knows no answers but
// Args and Pipe. The first request that only one of them has tells which it is,
// from then on. What fits neither ends the virtual machine, with the request in
// the report: its kernel would wait for an answer for ever. So does any other
// end of the control pipe.
//
// Dialect C has no pipes. A guest asks by hypercalls 5 to 15, each of which
// names a record, and waits for done to be set in it; [Calls] serves it. What
// can be answered at once is answered before the hypercall returns, and the
// guest never sleeps. What has to wait for a peer, or turns out to take longer
// than some hundred microseconds, is answered later by a goroutine of the
// call's own, so that the virtual CPU goes on. A call whose record lies in RAM
// is always answered, but for an accept at which no client arrives.
//
// Sockets and files are named by ids, numbers from 1 on that are never used
// again. An id says what kind of thing it names: a file's means nothing to a
// call about sockets. The sockets and files themselves, what limits them, and
// the shared allocator are the same code for all dialects.
//
// # Answers that guests don't expect
//
// A guest takes an error only in answer to Open and Mkdir. So a listener that
// can't listen is one at which no client arrives; a connection that can't be
// made, or that has failed, has nothing to receive and takes whatever is sent;
// a read that fails is the end of the file, a write that fails has length 0, a
// seek that can't be leaves the offset as it is. A guest of dialect B takes no
// error at all: a file that can't be opened is one that is empty. In dialect C
// a file that can't be opened has id 0. The real error goes to the log.
//
// # Hostile guests
//
// All that a guest can write is copied once, checked, then used: cursors,
// counts, messages, every index of the allocator. A guest that breaks a pipe
// loses that pipe. The walks of the allocator are as long as it has levels, and
// the wait for its lock is bounded. If it is unusable, or the control pipe has
// ended, [Options].OnBroken is told.
//
// # Words
//
//   - guest's lock: the allocator's spin lock in guest memory.
//   - broken: the guest has broken a rule; what it broke ends, and is counted.
//   - flag: a ring's byte by which a side says that it has dropped its end.
//   - place: where a pipe's rings are, as a message names them.
//   - look: the watcher's check whether a guest has moved a cursor.
//   - record: the memory by which a call of dialect C asks and is answered.
//
// # Locks
//
// In the order in which they are taken: allocator.mu, then the allocator's lock
// in guest memory. Server.mu and watcher.mu are taken alone. No lock is held
// while a pipe waits. A ring belongs to the goroutine that serves its pipe.
package rpc
