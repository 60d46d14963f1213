/* Entry of every CPU, interrupt stubs. */

	.section .text.start, "ax"
	.global _start
	.type _start, @function
/* Builds a struct entry on this CPU's stack. The zeros end a backtrace. */
_start:
	movq %rsp, %rax
	pushfq
	pushq %rbp
	pushq %rax
	pushq %r9
	pushq %r8
	pushq %rcx
	pushq %rdx
	pushq %rsi
	pushq %rdi
	movq %rsp, %rdi
	xorl %ebp, %ebp
	andq $-16, %rsp
	pushq $0
	jmp cpu_start
	.size _start, . - _start

	.text

	.type interrupt_common, @function
interrupt_common:
	pushq %rax
	pushq %rcx
	pushq %rdx
	pushq %rsi
	pushq %rdi
	pushq %r8
	pushq %r9
	pushq %r10
	pushq %r11
	pushq %rbp
	movq %rsp, %rbp
	movq 80(%rbp), %rdi	/* vector */
	andq $-16, %rsp
	cld
	call interrupt
	movq %rbp, %rsp
	popq %rbp
	popq %r11
	popq %r10
	popq %r9
	popq %r8
	popq %rdi
	popq %rsi
	popq %rdx
	popq %rcx
	popq %rax
	addq $8, %rsp
	iretq
	.size interrupt_common, . - interrupt_common

/* Vectors 32 to 255, 16 bytes each. */
	.align 16
	.global interrupt_stubs
	.type interrupt_stubs, @function
interrupt_stubs:
	.set n, 32
	.rept 224
	.align 16
	pushq $n
	jmp interrupt_common
	.set n, n + 1
	.endr
	.size interrupt_stubs, . - interrupt_stubs
