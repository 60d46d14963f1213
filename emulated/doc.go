// Package emulated runs Linux programs on emulated hardware that has KVM.
//
// QEMU without acceleration emulates an AMD processor with SVM. A stock Debian
// kernel runs on it with kvm-amd loaded, and programs find a /dev/kvm with
// nested paging, SMAP, SMEP, FSGSBASE and 1 GiB pages. It needs no privileges
// and no /dev/kvm of the host's. It is slow and faithful. The machine has one
// processor: with several emulator threads QEMU loses interrupts now and then.
//
// The words of this package:
//
//   - host: where [Run] is called; inside: in the machine
//   - init: the machine's first process, this package's [Init]
//   - link: the virtio-serial port between host and init; it carries frames
//   - base: init and the kernel's modules, the same for all runs of a program
//   - passed in: the programs and files of one run, and the plan
//   - plan: which programs init runs, and how
//   - boot: to start Linux, with everything in its initramfs
//   - snapshot: a file with a machine that has booted with the base alone
//   - resume: to start a machine from a snapshot, and to pass the rest in
//   - step: a part of a run, and when it was done
package emulated
