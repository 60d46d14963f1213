/* Calls to the monitor, and what is made of them: log, console, panic, exit. */
#include "format.h"
#include "kernel.h"

enum { CALL_EXIT, CALL_LOG, CALL_MEMCLR = 4, CALL_PANIC, CALL_NOTIFY_READ = 16, CALL_NOTIFY_WRITE, CALL_CLOCK };
enum { CONSOLE_PORT = 0xE9 };

static i64 hypercall(u64 number, u64 argument) {
	asm volatile("outb %%al, %%dx" : "+a"(number) : "d"(0), "D"(argument) : "memory");
	return number;
}

/* Text as the monitor takes it. */
struct text_record {
	u64 address, length;
};

static struct text_record text_record(const char *data, u64 length) {
	return (struct text_record){physical(data), length};
}

struct log_record {
	u8 level;
	struct text_record target;
	u64 has_file;
	struct text_record file;
	u32 has_line, line;
	u64 has_module;
	struct text_record module;
	struct text_record message;
};
_Static_assert(sizeof(struct log_record) == 96, "PROTOCOL.md, section 6");

void log_record(int level, const char *file, u32 line, const char *pattern, ...) {
	char message[512];
	struct text target = arg(0);
	__builtin_va_list list;

	__builtin_va_start(list, pattern);
	u64 n = format_list(message, sizeof message, pattern, list);
	__builtin_va_end(list);
	struct log_record r = {
		.level = level,
		.target = text_record(target.data, target.length),
		.has_file = 1,
		.file = text_record(file, strlen(file)),
		.has_line = 1,
		.line = line,
		.message = text_record(message, n),
	};
	hypercall(CALL_LOG, physical(&r));
}

void console_write(const void *data, u64 n) {
	asm volatile("rep outsb" : "+S"(data), "+c"(n) : "d"(CONSOLE_PORT) : "memory");
}

void program_exit(u8 code) {
	hypercall(CALL_EXIT, code);
	__builtin_unreachable();
}

void panic_at(const struct frame *frame, const char *pattern, ...) {
	char message[512];
	__builtin_va_list list;

	__builtin_va_start(list, pattern);
	u64 n = format_list(message, sizeof message, pattern, list);
	__builtin_va_end(list);
	struct {
		struct text_record message;
		u64 frame;
	} r = {text_record(message, n), frame ? physical(frame) : 0};
	hypercall(CALL_PANIC, physical(&r));
	__builtin_unreachable();
}

void memory_clear(void *p, u64 n) {
	u64 number = CALL_MEMCLR;
	asm volatile("outb %%al, %%dx" : "+a"(number) : "d"(0), "D"(physical(p)), "S"(n) : "memory");
	if (number)
		panic("clearing %x bytes at %x: error %d", n, (u64)p, -number);
}

i64 clock_read(u64 clock) {
	return hypercall(CALL_CLOCK, clock);
}

void notify_read(u64 pipe) {
	hypercall(CALL_NOTIFY_READ, pipe);
}

void notify_write(u64 pipe) {
	hypercall(CALL_NOTIFY_WRITE, pipe);
}
