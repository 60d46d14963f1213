/*
 * cpuid
 *
 * Prints what CPUID shows on the console, a line for each leaf that isn't all
 * 0: its number, its index, EAX, EBX, ECX, EDX, in hexadecimal.
 */
#include "../kernel/format.h"
#include "../kernel/kernel.h"

struct registers {
	u32 a, b, c, d;
};

static struct registers cpuid(u32 leaf, u32 index) {
	struct registers r;
	asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(index));
	return r;
}

static void print(u32 leaf, u32 index) {
	char line[96];
	struct registers r = cpuid(leaf, index);

	if (r.a | r.b | r.c | r.d)
		console_write(line, format(line, sizeof line, "%x %x %x %x %x %x\n", (u64)leaf, (u64)index, (u64)r.a, (u64)r.b, (u64)r.c, (u64)r.d));
}

int program_main(void) {
	enum { INDICES = 20 };
	static const u32 ranges[] = {0, 0x40000000, 0x40000100, 0x80000000, 0xC0000000};
	static const u32 indexed[] = {4, 7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x1D, 0x24};

	for (u32 i = 0; i < sizeof ranges / sizeof *ranges; i++)
		for (u32 leaf = ranges[i]; leaf < ranges[i] + 0x30; leaf++)
			print(leaf, 0);
	for (u32 i = 0; i < sizeof indexed / sizeof *indexed; i++)
		for (u32 index = 1; index < INDICES; index++)
			print(indexed[i], index);
	return 0;
}
