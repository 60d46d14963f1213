/* What the kernel's own files tell each other. */
#ifndef INTERNAL_H
#define INTERNAL_H

#include "kernel.h"

void memory_init(void);
/*
 * Turns the boot context into this CPU's idle context; starts first (if not
 * NULL) on the stack given.
 */
_Noreturn void threads_run(void (*first)(void *), void *stack, u64 stack_size);
void stop_wake(void);

/* The only full fence that every KVM can interpret: a locked instruction. */
static inline void full_fence(void) {
	asm volatile("lock orl $0, -64(%%rsp)" ::: "memory", "cc");
}

#endif
