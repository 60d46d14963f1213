/*
 * rpc-panic [last|ud2|wild|out]
 *
 * Panics: by itself, by a call at the very end of a function, by an invalid
 * opcode, by a wild read, by an allocation that is too large.
 */
#include "../kernel/rpc.h"

#define NOINLINE __attribute__((noinline, noclone))

static NOINLINE void last_function(void) { panic("at the end"); }

static NOINLINE void inner_function(struct text how) {
	if (text_equal(how, "last"))
		last_function();
	if (text_equal(how, "ud2"))
		asm volatile("ud2");
	if (text_equal(how, "wild"))
		(void)*(volatile u64 *)0xFFFFDEADBEEF0000ul;
	if (text_equal(how, "out"))
		block_alloc(1ul << 40);
	panic("as you asked");
}

static NOINLINE void outer_function(void) {
	inner_function(arg(1));
	asm volatile("");
}

i32 program_main(void) {
	outer_function();
	return 0;
}
