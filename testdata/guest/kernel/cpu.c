/* Start of every CPU: descriptor tables, local APIC, exceptions. */
#include "internal.h"

const struct boot_block *boot;
struct cpu cpus[MAX_CPUS];
u32 stop_requested;
u64 first_tsc;
static struct thread *stop_waiter;

enum {
	CODE = 0x08,
	TSS = 0x18,
	INTERRUPT_GATE = 0x8E00,
	DOUBLE_FAULT = 8,
	SPURIOUS_VECTOR = 0xFF,
	MSR_GS_BASE = 0xC0000101,
	X2APIC_SPURIOUS = 0x80F,
	X2APIC_ICR = 0x830,
	APIC_ENABLE = 0x100,
};

extern u8 wake_stub[], stop_stub[], main_stack[], main_stack_end[];

static void wrmsr(u32 msr, u64 value) {
	asm volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static void set_gate(struct cpu *c, u32 vector, const void *handler, u32 stack) {
	u64 h = (u64)handler;
	c->idt[vector].low = (h & 0xFFFF) | CODE << 16 | (u64)stack << 32 | (u64)INTERRUPT_GATE << 32 | (h >> 16 & 0xFFFF) << 48;
	c->idt[vector].high = h >> 32;
}

/* Between CPUs: any vector that the monitor doesn't use. */
static u32 kick_vector(const struct boot_block *b) {
	u32 v = 0xE0;
	while (v == b->stream_vector || v == b->stop_vector)
		v++;
	return v;
}

void cpu_kick(struct cpu *c) {
	wrmsr(X2APIC_ICR, (u64)c->index << 32 | kick_vector(boot));
}

static void load_tables(struct cpu *c, const struct boot_block *b) {
	u64 tss = (u64)c->tss;
	u64 fault_stack = (u64)(c->fault_stack + sizeof c->fault_stack);

	memcpy(&c->tss[9], &fault_stack, sizeof fault_stack); /* IST 1 */
	c->tss[25] = sizeof c->tss << 16;                     /* no I/O bitmap */
	c->gdt[1] = 0x00AF9B000000FFFF;
	c->gdt[2] = 0x00CF93000000FFFF;
	c->gdt[3] = (sizeof c->tss - 1) | (tss & 0xFFFFFF) << 16 | 0x89ul << 40 | (tss >> 24 & 0xFF) << 56;
	c->gdt[4] = tss >> 32;
	for (u32 v = 0; v < 32; v++)
		set_gate(c, v, exception_stubs + 16 * v, v == DOUBLE_FAULT);
	set_gate(c, b->stream_vector, wake_stub, 0);
	set_gate(c, kick_vector(b), wake_stub, 0);
	set_gate(c, b->stop_vector, stop_stub, 0);
	set_gate(c, SPURIOUS_VECTOR, wake_stub, 0);

	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) table = {sizeof c->gdt - 1, (u64)c->gdt};
	asm volatile("lgdt %0" ::"m"(table));
	table.limit = sizeof c->idt - 1;
	table.base = (u64)c->idt;
	asm volatile("lidt %0" ::"m"(table));
	asm volatile("ltr %w0" ::"r"(TSS));
}

static void run_program(void *unused) {
	(void)unused;
	streams_init();
	program_exit(program_main());
}

/*
 * Every CPU comes here at once, on its boot stack, and doesn't wait for the
 * others: a CPU needs only what the boot block says, and work for it comes
 * through its remote list.
 */
_Noreturn void cpu_start(u64 boot_address, u32 index, u64 tsc) {
	const struct boot_block *b = virtual(boot_address);
	struct cpu *c = &cpus[index];

	c->self = c;
	c->index = index;
	c->pending = virtual(b->window_base + b->pending_offset + index * b->pending_stride);
	load_tables(c, b);
	wrmsr(MSR_GS_BASE, (u64)c);
	wrmsr(X2APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
	if (index == 0) {
		boot = b;
		first_tsc = tsc;
		memory_init();
		threads_run(run_program, main_stack, main_stack_end - main_stack);
	}
	threads_run(NULL, NULL, 0);
}

struct text arg(u32 n) {
	struct { u64 address, length; } *entries = virtual(boot->args);
	if (n >= boot->arg_count)
		return (struct text){"", 0};
	return (struct text){virtual(entries[n].address), entries[n].length};
}

void wait_for_stop(void) {
	stop_waiter = thread_current();
	while (!__atomic_load_n(&stop_requested, __ATOMIC_RELAXED))
		thread_sleep();
}

/* CPU 0's scheduler calls this when stop_requested is set. */
void stop_wake(void) {
	struct thread *t = stop_waiter;
	stop_waiter = NULL;
	if (t)
		thread_wake(t);
}

_Noreturn void exception(const struct frame *f) {
	const char *name = exception_name(f->vector);
	if (f->vector == 14)
		panic_at(f, "%s at %x, error code %x", name, f->cr2, f->error_code);
	panic_at(f, "%s, error code %x", name, f->error_code);
}
