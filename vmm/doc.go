// Package vmm runs one Arca virtual machine: its memory, its image, its virtual
// CPUs, its interrupts and its life from start to end.
//
// It is where the packages kvm, hypercall, pipes and relay meet to make a
// machine. It knows ioctls and rings by their types only, and sockets not at
// all.
//
// An embedding program needs three names: [Config], [New] and [VM.Run]. A test
// needs vmmtest.Boot. GOMAXPROCS should be larger than the number of virtual
// CPUs: each holds one of Go's processors while it is in the guest.
//
// # Glossary
//
//	guest         what runs in the VM: an image, and all that it does
//	monitor       this program, as the guest's host
//	CPU           a virtual CPU, and the thread that runs it
//	exit          a CPU's return from the guest to the monitor
//	ABI           how guest and monitor talk; rpc and hypercall are older
//	machine       what a VM is made of: KVM's VM, memory, CPUs
//	builder       what makes a machine for guests of one ABI
//	runner        what serves a guest of one ABI, once its machine is complete
//	RAM           the guest's memory
//	window        memory that stream guests share with the monitor, for rings
//	boot block    what the monitor tells a stream guest in RAM, before it runs
//	console       port 0xE9, whose bytes go to Config.Console
//	stdio         the stream of the monitor's standard input and output
//	gate          what keeps CPUs out of the guest: pauses, reports, the end
//	outcome       how a run ended: an exit code or an error
//	crash         the guest's death; its error is a CrashError
//	report        what every CPU was doing at one moment
//	trace         a backtrace without names
package vmm
