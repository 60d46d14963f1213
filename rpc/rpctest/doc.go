// Package rpctest is the guest's half of Arca's request/response ABI in Go,
// without KVM: for tests of package rpc.
//
// It does what the kernels do: it allocates and frees in the shared allocator
// on several goroutines at once, counts the references of rings and frees those
// that it is the last to drop, sends every request and waits for the response
// by looking and yielding. Where a kernel panics, it panics.
package rpctest
