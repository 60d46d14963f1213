/*
 * rpc-require
 *
 * Asserts what the real kernels take for granted of the processor, and of the
 * state in which every CPU starts. Exit code 0, or 1 and a record for each
 * thing that is missing.
 */
#include "../kernel/rpc.h"

static u32 missing;

static void require(int ok, const char *what) {
	if (ok)
		return;
	log(LOG_ERROR, "missing: %s", what);
	missing++;
}

struct cpuid {
	u32 a, b, c, d;
};

static struct cpuid cpuid(u32 leaf) {
	struct cpuid r = {.a = leaf, .c = 0};
	asm volatile("cpuid" : "+a"(r.a), "=b"(r.b), "+c"(r.c), "=d"(r.d));
	return r;
}

static void check_processor(void) {
	require(cpuid(0x80000001).d >> 26 & 1, "1 GiB pages");
	require(cpuid(0x80000001).d >> 27 & 1, "RDTSCP");
	require(cpuid(7).b & 1, "FSGSBASE");
	require(cpuid(7).b >> 20 & 1, "SMAP");
	require(cpuid(7).b >> 7 & 1, "SMEP");
	require(cpuid(1).c >> 21 & 1, "x2APIC");
	require(cpuid(0x80000007).d >> 8 & 1, "invariant TSC");
	require(cpuid(0x40000001).a >> 3 & 1, "kvmclock");
}

/* What a guest has no use for isn't there. */
static void check_hidden(void) {
	enum { VMX = 1 << 5, MONITOR = 1 << 3, PDCM = 1 << 15, SVM = 1 << 2, PERFCTR = 1 << 23 };
	enum { CLOCK_ONLY = 1 | 1 << 3 | 1 << 24 };

	require(!(cpuid(1).c & (VMX | MONITOR | PDCM)), "nothing of VMX, MONITOR, PDCM");
	require(!(cpuid(0x80000001).c & (SVM | PERFCTR)), "nothing of SVM, PERFCTR");
	require(!cpuid(0x8000000A).d && !cpuid(0x8000001F).a, "no leaves of SVM, SEV");
	require(!(cpuid(0x40000001).a & ~CLOCK_ONLY) && !cpuid(0x40000001).d, "nothing of KVM but its clock");
}

static void check_entry(const struct percpu *c) {
	enum { PG = 1u << 31, WP = 1 << 16, EM = 4, MP = 2, PE = 1 };
	enum { PAE = 1 << 5, PGE = 1 << 7, OSFXSR = 1 << 9, OSXMMEXCPT = 1 << 10, FSGSBASE = 1 << 16, SMEP = 1 << 20, SMAP = 1 << 21 };
	enum { SCE = 1, LME = 1 << 8, LMA = 1 << 10, NXE = 1 << 11 };
	const u64 cr0 = PG | WP | MP | PE, cr4 = PAE | PGE | OSFXSR | OSXMMEXCPT | FSGSBASE | SMEP | SMAP, efer = SCE | LME | LMA;
	const struct entry *e = &c->entry, *first = &cpus[0]->entry;

	require((c->cr0 & (cr0 | EM)) == cr0, "CR0");
	require((c->cr4 & cr4) == cr4, "CR4");
	require((c->efer & (efer | NXE)) == efer, "EFER");
	/* Newer kernels use AVX. */
	if (cpuid(1).c >> 26 & 1)
		require(c->cr4 >> 18 & 1, "CR4: OSXSAVE");
	require(c->cs == 8 && c->ds == 16 && c->es == 16 && c->fs == 16 && c->gs == 16, "segments");
	require(e->rflags == 2 && e->rbp == 0, "RFLAGS 2, RBP 0");
	require(e->rsp % 4096 == 0 && e->rsp >= (u64)at(2 << 20) && e->rsp <= (u64)at(ram_size()), "RSP");
	require(!memcmp(e, first, __builtin_offsetof(struct entry, rsp)), "the same registers on each CPU");
	require(c == cpus[0] || e->rsp != first->rsp, "a stack for each CPU");
}

static void check_registers(void) {
	enum { AVX = 1 << 28, OSXSAVE = 1 << 27, X87_SSE_AVX = 7 };
	u32 low, high, number;

	if ((cpuid(1).c & (AVX | OSXSAVE)) == (AVX | OSXSAVE)) {
		asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
		require(low == X87_SSE_AVX && high == 0, "XCR0: x87, SSE, AVX");
	}
	asm volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(number));
	require(number == this_cpu()->index, "TSC_AUX is the CPU's number");
}

i32 program_main(void) {
	check_processor();
	check_hidden();
	for (u32 i = 0; i < cpu_count; i++)
		check_entry(cpus[i]);
	if (cpuid(0x80000001).d >> 27 & 1)
		run_everywhere(check_registers);
	log(LOG_INFO, "%u CPUs checked, %u things missing", (u64)cpu_count, (u64)missing);
	return missing ? 1 : 0;
}
