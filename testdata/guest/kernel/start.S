/* Entry of every CPU, the thread switch, the halt, interrupt stubs. */

	.section .note.Arca, "a", @note
	.align 4
	.long 5, 4, 1
	.asciz "Arca"
	.align 4
	.long 1

	.section .stack, "aw", @nobits
	.global main_stack, main_stack_end
main_stack:
	.skip 65536
main_stack_end:

	.section .text.start, "ax"
	.global _start
	.type _start, @function
/*
 * RDI: boot block, RSI: CPU index, RSP: this CPU's stack. cpu_start gets the
 * time in RDX. The zeros end a backtrace.
 */
_start:
	rdtsc
	shlq $32, %rdx
	orq %rax, %rdx
	xorl %ebp, %ebp
	pushq $0
	jmp cpu_start
	.size _start, . - _start

	.text

/*
 * void switch_context(u64 *save, u64 load): keeps what the ABI asks a function
 * to keep, on the stack.
 */
	.global switch_context
	.type switch_context, @function
switch_context:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
	.size switch_context, . - switch_context

/*
 * Interrupts are on between sti and cli only, and sti takes effect after the
 * next instruction: none is lost.
 */
	.global cpu_halt
	.type cpu_halt, @function
cpu_halt:
	sti
	hlt
halt_done:
	cli
	ret
	.size cpu_halt, . - cpu_halt

/*
 * Interrupts interrupt cpu_halt only, whose caller expects no scratch register
 * to survive. So they save none. What there is to do, the scheduler finds in
 * memory.
 */
	.global wake_stub, stop_stub
	.type stop_stub, @function
stop_stub:
	movl $1, stop_requested(%rip)
	.size stop_stub, . - stop_stub
	.type wake_stub, @function
wake_stub:
	movl $0x80b, %ecx
	xorl %eax, %eax
	xorl %edx, %edx
	wrmsr
	/*
	 * Never back to the hlt: emulated KVM may forget, over an exit between the
	 * two, that sti holds interrupts off.
	 */
	leaq halt_done(%rip), %rax
	movq %rax, (%rsp)
	iretq
	.size wake_stub, . - wake_stub
