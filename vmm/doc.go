// Package vmm runs one Arca virtual machine: its memory, its image, its virtual
// CPUs, its interrupts and its life from start to end.
//
// It is where the packages kvm, hypercall, pipes and relay meet to make a machine.
// It knows ioctls and rings by their types only, and sockets not at all.
//
// An embedding program needs three names: [Config], [New] and [VM.Run]. A test
// needs vmmtest.Boot. GOMAXPROCS should be larger than the number of virtual
// CPUs: each holds one of Go's processors while it is in the guest.
package vmm
