// Package hypercall is the guest's calls to the monitor: their numbers, their records in guest memory, the checks of
// their arguments, and a dispatch table (PROTOCOL.md section 6).
//
// Everything in a call is hostile: numbers, addresses, lengths and the records they point at. A record is copied out of
// guest memory once, then checked, then used. The package knows nothing of KVM; it sees guest memory through [Memory].
package hypercall
