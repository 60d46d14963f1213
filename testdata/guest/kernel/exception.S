/* Exception stubs: each ends in exception(). */

	.text

/* Builds a struct frame and never returns. */
	.type exception_common, @function
exception_common:
	subq $168, %rsp
	movq %rax, 0(%rsp)
	movq %rbx, 8(%rsp)
	movq %rcx, 16(%rsp)
	movq %rdx, 24(%rsp)
	movq %rsi, 32(%rsp)
	movq %rdi, 40(%rsp)
	movq %rbp, 56(%rsp)
	movq %r8, 64(%rsp)
	movq %r9, 72(%rsp)
	movq %r10, 80(%rsp)
	movq %r11, 88(%rsp)
	movq %r12, 96(%rsp)
	movq %r13, 104(%rsp)
	movq %r14, 112(%rsp)
	movq %r15, 120(%rsp)
	movq 168(%rsp), %rax
	movq %rax, 144(%rsp)	/* vector */
	movq 176(%rsp), %rax
	movq %rax, 152(%rsp)	/* error code */
	movq 184(%rsp), %rax
	movq %rax, 128(%rsp)	/* rip */
	movq 200(%rsp), %rax
	movq %rax, 136(%rsp)	/* rflags */
	movq 208(%rsp), %rax
	movq %rax, 48(%rsp)	/* rsp */
	movq %cr2, %rax
	movq %rax, 160(%rsp)
	cld
	movq %rsp, %rdi
	call exception
	.size exception_common, . - exception_common

/* 32 stubs of 16 bytes each. */
	.align 16
	.global exception_stubs
	.type exception_stubs, @function
exception_stubs:
	.set n, 0
	.rept 32
	.align 16
	/* These push an error code themselves. */
	.if !(n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21 || n == 29 || n == 30)
	pushq $0
	.endif
	.byte 0x6a, n	/* pushq $n */
	jmp exception_common
	.set n, n + 1
	.endr
	.size exception_stubs, . - exception_stubs
