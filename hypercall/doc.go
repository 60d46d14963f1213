// Package hypercall is the guest's calls to the monitor: their numbers, their
// records in guest memory, the checks of their arguments, and a dispatch table
// (PROTOCOL.md section 6).
//
// Everything in a call is hostile: numbers, addresses, lengths, and the records
// they point at. A record is copied out of guest memory once, then checked,
// then used. The package knows nothing of KVM, and sees guest memory through
// [Memory].
//
// # Glossary
//
//	call       one hypercall: its number and six arguments, in registers
//	record     a struct in guest memory that an argument points at
//	handler    the monitor's half of a call
//	host call  a call of the oldest ABI, for a socket or a file
//	refused    answered with a negative errno
package hypercall
