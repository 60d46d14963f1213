/*
 * Start of every CPU: page tables, descriptor tables, interrupt controllers,
 * exceptions.
 */
#include "rpc.h"

struct percpu *cpus[MAX_CPUS];
u32 cpu_count;
u32 notifying;
u64 signals;

enum { MAGIC = 0x41524341 };

/* At virtual address 0: only %gs reaches it, and the copies of it. */
__attribute__((section(".percpu"), used)) static struct percpu template = {
	.magic = MAGIC,
	.gdt = {0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF},
};

extern u8 percpu_template[], interrupt_stubs[];

enum { CODE = 0x08, TSS = 0x18, INTERRUPT_GATE = 0x8E00, DOUBLE_FAULT = 8 };
enum { TIMER_VECTOR = 0x20, SIGNAL_VECTOR = 0x30, STOP_VECTOR, WAKE_VECTOR, SPURIOUS_VECTOR = 0xFF };
enum {
	MSR_APIC_BASE = 0x1B,
	MSR_EFER = 0xC0000080,
	MSR_GS_BASE = 0xC0000101,
	X2APIC_ID = 0x802,
	X2APIC_EOI = 0x80B,
	X2APIC_SPURIOUS = 0x80F,
	X2APIC_ICR = 0x830,
	X2APIC_TIMER = 0x832,
	X2APIC_INITIAL_COUNT = 0x838,
	X2APIC_DIVIDE = 0x83E,
	APIC_BASE_X2 = 0xC00,
	APIC_ENABLE = 0x100,
	PERIODIC = 1 << 17,
	DIVIDE_BY_1 = 0xB,
	ALL_BUT_SELF = 3 << 18,
};

static struct { u64 low, high; } idt[256];
static u64 root[512] __attribute__((aligned(4096))), gibs[512] __attribute__((aligned(4096)));
static volatile u32 data_magic = MAGIC;
static u32 ready;

static u64 rdmsr(u32 msr) {
	u32 low, high;
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (u64)high << 32 | low;
}

static void wrmsr(u32 msr, u64 value) {
	asm volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

void relax(void) { asm volatile("pause" ::: "memory"); }
void interrupts_off(void) { asm volatile("cli" ::: "memory"); }
void interrupts_on(void) { asm volatile("sti" ::: "memory"); }
/*
 * An interrupt right before the halt is made up for by the next timer
 * interrupt.
 */
void halt_with_interrupts(void) { asm volatile("sti; hlt" ::: "memory"); }

int spin_try(struct spinlock *l) {
	u64 free = 0;
	return __atomic_compare_exchange_n(&l->taken, &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

void spin_lock(struct spinlock *l) {
	while (!spin_try(l))
		relax();
}

void spin_unlock(struct spinlock *l) { __atomic_store_n(&l->taken, 0, __ATOMIC_RELEASE); }

static int has_gib_pages(void) {
	u32 a = 0x80000001, b, c = 0, d;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return d >> 26 & 1;
}

enum { PRESENT = 3, UNCACHED = 0x18, LARGE = 0x80, GLOBAL = 0x100, GIB_SHIFT = 30, IOAPIC = 0xFEC00000 };

static void map_gib(u64 gib) {
	u64 flags = PRESENT | LARGE | GLOBAL | (gib == IOAPIC >> GIB_SHIFT ? UNCACHED : 0);

	if (has_gib_pages()) {
		gibs[gib] = gib << GIB_SHIFT | flags;
		return;
	}
	u64 *table = block_alloc(4096);
	for (u64 i = 0; i < 512; i++)
		table[i] = (gib << GIB_SHIFT | i << 21) | flags;
	gibs[gib] = physical(table) | PRESENT;
}

static void build_tables(void) {
	root[256] = physical(gibs) | PRESENT;
	map_gib(IOAPIC >> GIB_SHIFT);
	for (u64 a = MEM_BASE; a < MEM_BASE + ram_size(); a += 1ul << GIB_SHIFT)
		map_gib(a >> GIB_SHIFT);
}

static void set_gate(u32 vector, const void *handler, u32 stack) {
	u64 h = (u64)handler;
	idt[vector].low = (h & 0xFFFF) | CODE << 16 | (u64)stack << 32 | (u64)INTERRUPT_GATE << 32 | (h >> 16 & 0xFFFF) << 48;
	idt[vector].high = h >> 32;
}

static void fill_idt(void) {
	for (u32 v = 0; v < 32; v++)
		set_gate(v, exception_stubs + 16 * v, v == DOUBLE_FAULT);
	for (u32 v = 32; v < 256; v++)
		set_gate(v, interrupt_stubs + 16 * (v - 32), 0);
}

static void load_tables(struct percpu *c) {
	u64 tss = (u64)c->tss, fault_stack = (u64)(c->fault_stack + sizeof c->fault_stack);

	memcpy(&c->tss[9], &fault_stack, sizeof fault_stack); /* IST 1 */
	c->tss[25] = sizeof c->tss << 16;                     /* no I/O bitmap */
	c->gdt[3] = (sizeof c->tss - 1) | (tss & 0xFFFFFF) << 16 | 0x89ul << 40 | (tss >> 24 & 0xFF) << 56;
	c->gdt[4] = tss >> 32;
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) table = {sizeof c->gdt - 1, (u64)c->gdt};
	asm volatile("lgdt %0" ::"m"(table));
	table.limit = sizeof idt - 1;
	table.base = (u64)idt;
	asm volatile("lidt %0" ::"m"(table));
	asm volatile("ltr %w0" ::"r"(TSS));
}

/* Edge triggered, to CPU 0. */
static void ioapic_route(u32 pin, u8 vector) {
	volatile u32 *select = virtual(IOAPIC), *window = virtual(IOAPIC + 0x10);

	*select = 0x11 + 2 * pin;
	*window = 0;
	*select = 0x10 + 2 * pin;
	*window = vector;
}

static void start_apic(void) {
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_X2);
	wrmsr(X2APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
	wrmsr(X2APIC_DIVIDE, DIVIDE_BY_1);
	wrmsr(X2APIC_TIMER, PERIODIC | TIMER_VECTOR);
	wrmsr(X2APIC_INITIAL_COUNT, 1000000); /* KVM's bus has 1 GHz */
}

/* A copy of the template, from the first CPU on the shared allocator's. */
static struct percpu *new_percpu(const struct entry *e) {
	struct percpu *c = block_alloc(sizeof *c);

	memcpy(c, percpu_template, sizeof *c);
	assert_that(c->magic == MAGIC, "the segment with virtual address 0 was loaded");
	assert_that(data_magic == MAGIC, "the segment of data was loaded");
	c->self = c;
	c->entry = *e;
	asm volatile("mov %%cr0, %0" : "=r"(c->cr0));
	asm volatile("mov %%cr4, %0" : "=r"(c->cr4));
	c->efer = rdmsr(MSR_EFER);
	asm volatile("mov %%cs, %0" : "=r"(c->cs));
	asm volatile("mov %%ds, %0" : "=r"(c->ds));
	asm volatile("mov %%es, %0" : "=r"(c->es));
	asm volatile("mov %%fs, %0" : "=r"(c->fs));
	asm volatile("mov %%gs, %0" : "=r"(c->gs));
	return c;
}

/* Work for all CPUs: a generation, and how many have done it. */
static void (*work)(void);
static u32 generation, done;

void run_everywhere(void (*f)(void)) {
	work = f;
	done = 0;
	__atomic_add_fetch(&generation, 1, __ATOMIC_RELEASE);
	f();
	wait_until(__atomic_load_n(&done, __ATOMIC_ACQUIRE) == cpu_count - 1);
}

static _Noreturn void work_forever(void) {
	for (u32 seen = 0;; seen++) {
		/* The timer looks after what comes between the look and the halt. */
		while (__atomic_load_n(&generation, __ATOMIC_ACQUIRE) == seen)
			halt_with_interrupts();
		work();
		__atomic_add_fetch(&done, 1, __ATOMIC_RELEASE);
	}
}

/*
 * All CPUs come here at once, with the same arguments. Which one this is, is
 * the local APIC's number.
 */
static u32 started;
_Noreturn void cpu_start(const struct entry *e) {
	if (__atomic_fetch_add(&started, 1, __ATOMIC_RELAXED) == 0) {
		allocator_init(e->allocator);
		cpu_count = e->cpus;
		build_tables();
		fill_idt();
		__atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
	}
	while (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE))
		relax();

	struct percpu *c = new_percpu(e);
	asm volatile("mov %0, %%cr3" ::"r"(physical(root)) : "memory");
	load_tables(c);
	wrmsr(MSR_GS_BASE, (u64)c);
	start_apic();
	c->index = rdmsr(X2APIC_ID);
	assert_that(c->index < cpu_count && !cpus[c->index], "every CPU has a number of its own");
	__atomic_store_n(&cpus[c->index], c, __ATOMIC_RELEASE);
	if (c->index)
		work_forever();

	for (u32 i = 1; i < cpu_count; i++)
		while (!__atomic_load_n(&cpus[i], __ATOMIC_ACQUIRE))
			relax();
	control_init(e);
	/* From here on one may be asked to stop. */
	ioapic_route(0, SIGNAL_VECTOR);
	ioapic_route(1, STOP_VECTOR);
	interrupts_on();
	control_exit(program_main());
}

void interrupt(u64 vector) {
	if (vector == SPURIOUS_VECTOR)
		return;
	wrmsr(X2APIC_EOI, 0);
	switch (vector) {
	case TIMER_VECTOR:
		this_cpu()->timer_ticks++;
		return;
	case SIGNAL_VECTOR:
		if (!notifying)
			panic("interrupt 0x30: this kernel doesn't know it");
		signals++;
		if (cpu_count > 1)
			wrmsr(X2APIC_ICR, ALL_BUT_SELF | WAKE_VECTOR);
		return;
	case WAKE_VECTOR:
		return;
	case STOP_VECTOR:
		control_stop();
	}
	panic("interrupt %x: this kernel doesn't know it", vector);
}

_Noreturn void exception(const struct frame *f) {
	char name[160];
	struct text t = {name, symbol(name, sizeof name, f->rip)};
	panic("%s in %t, error code %x, address %x", exception_name(f->vector), &t, f->error_code, f->cr2);
}
