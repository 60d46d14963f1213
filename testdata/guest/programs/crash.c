/*
 * crash panic|ud2|wild|overflow|triple|port [PORT]|in PORT|mmio [ADDRESS]
 *
 * Dies in the way asked for:
 *   panic     the PANIC call, without a frame
 *   ud2       an invalid opcode
 *   wild      a read from an address that nothing is mapped at
 *   overflow  a recursion without end, which runs off the lowest stack in RAM:
 *             a double fault
 *   triple    a triple fault: an exception without an IDT
 *   port, in  a write to, or a read from, an I/O port that doesn't exist
 *             (0x1234)
 *   mmio      a read where neither RAM nor window is (0xD000_1000), through a
 *             page table of its own
 * PORT and ADDRESS are decimal.
 */
#include "../kernel/kernel.h"

#define NOINLINE __attribute__((noinline, noclone))
/*
 * gcc gives a function that doesn't use its stack no frame, and its caller
 * would be missing in the backtrace.
 */
#define NEED_FRAME() asm volatile("" ::"r"(__builtin_frame_address(0)))

static NOINLINE u64 recurse(u64 depth, volatile u64 *before) {
	volatile u64 here[16];
	here[0] = depth + before[0];
	return depth == ~0ul ? 0 : recurse(depth + 1, here) + here[0];
}

static NOINLINE void overflow(void) {
	volatile u64 start = 0;
	recurse(0, &start);
}

static NOINLINE void wild(void) {
	NEED_FRAME();
	(void)*(volatile u64 *)0xFFFFDEADBEEF0000ul;
}

static NOINLINE void ud2(void) {
	NEED_FRAME();
	asm volatile("ud2");
}

static NOINLINE void triple(void) {
	NEED_FRAME();
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) none = {0, 0};
	asm volatile("lidt %0; ud2" ::"m"(none));
}

static NOINLINE void port(u64 number) {
	NEED_FRAME();
	asm volatile("outb %%al, %%dx" ::"a"(0), "d"(number));
}

static NOINLINE void in(u64 number) {
	NEED_FRAME();
	u8 value;
	asm volatile("inb %%dx, %0" : "=a"(value) : "d"(number));
	log(LOG_ERROR, "the port gives %u", (u64)value);
}

/* Maps the 2 MiB around the physical address to virtual 0 and reads there. */
static NOINLINE void mmio(u64 address) {
	NEED_FRAME();
	enum { PRESENT = 3, LARGE = 0x80, LARGE_PAGE = 2 << 20 };
	u64 cr3, *tables = memory_alloc(8192);

	asm volatile("mov %%cr3, %0" : "=r"(cr3));
	u64 *root = virtual(cr3 & ~0xFFFul);
	tables[0] = physical(tables + 512) | PRESENT;
	tables[512] = (address & ~(LARGE_PAGE - 1ul)) | LARGE | PRESENT;
	root[0] = physical(tables) | PRESENT;
	asm volatile("mov %0, %%cr3; mov (%1), %0" : "+r"(cr3) : "r"(address & (LARGE_PAGE - 1)) : "memory");
	log(LOG_ERROR, "the address gives %x", cr3);
}

int program_main(void) {
	struct text how = arg(1);
	u64 number = 0;

	if (boot->arg_count > 2 && parse_number(arg(2), &number))
		how = (struct text){"", 0};
	log(LOG_INFO, "crashing by: %t", &how);
	if (text_equal(how, "panic"))
		panic("as you asked: %t", &how);
	else if (text_equal(how, "ud2"))
		ud2();
	else if (text_equal(how, "wild"))
		wild();
	else if (text_equal(how, "overflow"))
		overflow();
	else if (text_equal(how, "triple"))
		triple();
	else if (text_equal(how, "port"))
		port(boot->arg_count > 2 ? number : 0x1234);
	else if (text_equal(how, "in"))
		in(number);
	else if (text_equal(how, "mmio"))
		mmio(boot->arg_count > 2 ? number : 0xD0001000);
	else
		log(LOG_ERROR, "crash panic|ud2|wild|overflow|triple|port [PORT]|in PORT|mmio [ADDRESS]");
	return 64;
}
