/*
 * trace panic|frameless|rounds|fault|spin
 *
 * For reports of where it is; the only image with debug information. It says
 * that it begins, and then:
 *   panic      panics in an inlined function
 *   frameless  makes the PANIC call in a function that has no frame and ends
 *              with it
 *   rounds     panics in a recursion of two functions, after a hundred rounds
 *   fault      reads from an address that nothing is mapped at, in a function
 *              that has no frame
 *   spin       runs a loop on every CPU but the last, which halts, and hears of
 *              nothing
 */
#include "../kernel/kernel.h"

#define NOINLINE __attribute__((noinline, noclone))
/*
 * gcc gives a function that doesn't use its stack no frame, and its caller
 * would be missing in the backtrace.
 */
#define NEED_FRAME() asm volatile("" ::"r"(__builtin_frame_address(0)))

/*
 * These are written out: a compiler would make a frame, or put something behind
 * the last instruction.
 */
asm(".text\n"
    ".type call_panic, @function\n"
    "call_panic:\n"
    "	movl $5, %eax\n"
    "	xorl %edx, %edx\n"
    "	outb %al, %dx\n"
    ".size call_panic, . - call_panic\n"
    ".type read_word, @function\n"
    "read_word:\n"
    "	movq (%rdi), %rax\n"
    "	ret\n"
    ".size read_word, . - read_word\n");
void call_panic(u64 record);
u64 read_word(u64 address);

static NOINLINE void frameless(void) {
	static const char message[] = "without a frame";
	struct {
		u64 address, length, frame;
	} record = {physical(message), sizeof message - 1, 0};

	NEED_FRAME();
	asm volatile("" ::"r"(&record) : "memory");
	call_panic(physical(&record));
}

static NOINLINE void fault(void) {
	NEED_FRAME();
	read_word(0xFFFFDEADBEEF0000ul);
	asm volatile("");
}

static inline __attribute__((always_inline)) void inlined(void) {
	panic("inlined");
}

static NOINLINE u64 round_one(u64 left);

static NOINLINE u64 round_two(u64 left) {
	NEED_FRAME();
	if (left == 0)
		inlined();
	return round_one(left - 1) + 1;
}

static NOINLINE u64 round_one(u64 left) {
	NEED_FRAME();
	return round_two(left) + 1;
}

static NOINLINE void spin(void *unused) {
	NEED_FRAME();
	(void)unused;
	for (;;)
		asm volatile("pause");
}

int program_main(void) {
	struct text how = arg(1);

	log(LOG_INFO, "tracing %t", &how);
	if (TEXT_IS(how, "panic"))
		inlined();
	if (TEXT_IS(how, "frameless"))
		frameless();
	if (TEXT_IS(how, "rounds"))
		round_one(100);
	if (TEXT_IS(how, "fault"))
		fault();
	if (TEXT_IS(how, "spin")) {
		for (u32 i = 1; i + 1 < boot->cpu_count; i++)
			thread_start(i, spin, NULL);
		spin(NULL);
	}
	log(LOG_ERROR, "trace panic|frameless|rounds|fault|spin");
	return 64;
}
