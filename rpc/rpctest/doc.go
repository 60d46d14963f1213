// Package rpctest is the guest's half of Arca's request/response ABI in Go,
// without KVM: for tests of package rpc.
//
// It does what the kernels do: it allocates and frees in the shared allocator
// on several goroutines at once, counts the references of rings and frees those
// that it is the last to drop, sends every request and waits for the response
// by looking and yielding. Where a kernel panics, it panics.
//
// Words of this package:
//
//   - block: what the allocator gives out; its size is a power of two.
//   - drop: to give up an end of a ring, by its flag and then its reference.
//   - level: the blocks of one size; the number is its base-2 logarithm.
//   - RAM: the guest's memory, which guest and monitor share; offsets count
//     from its start.
//   - ring: bytes in one direction; a pipe has two.
package rpctest
