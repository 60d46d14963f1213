/* Calls to the monitor, and what is made of them: log, console, panic, exit. */
#include "../../kernel/format.h"
#include "rpc.h"

enum { CALL_EXIT, CALL_LOG, CALL_SYMNAME, CALL_MEMSET, CALL_MEMCLR, CALL_NOTIFY_READ = 16, CALL_NOTIFY_WRITE };
enum { CONSOLE_PORT = 0xE9, GARBAGE = 0xA5 };

static i64 hypercall(u64 number, u64 a, u64 b, u64 c) {
	asm volatile("outb %%al, %%dx" : "+a"(number) : "d"(0), "D"(a), "S"(b), "c"(c) : "memory");
	return number;
}

/* Text as the monitor takes it; addresses are physical. */
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
_Static_assert(sizeof(struct log_record) == 96, "layout");

void log_record(int level, const char *file, u32 line, const char *pattern, ...) {
	static const char target[] = "rpc", module[] = "rpc::program";
	char message[512];
	struct log_record r;
	__builtin_va_list list;

	__builtin_va_start(list, pattern);
	u64 n = format_list(message, sizeof message, pattern, list);
	__builtin_va_end(list);
	memset(&r, GARBAGE, sizeof r);
	r.level = level;
	r.target = text_record(target, sizeof target - 1);
	r.message = text_record(message, n);
	r.has_file = r.has_line = r.has_module = 0;
	if (file) {
		r.has_file = r.has_line = r.has_module = 1;
		r.file = text_record(file, strlen(file));
		r.line = line;
		r.module = text_record(module, sizeof module - 1);
	}
	i64 result = hypercall(CALL_LOG, physical(&r), 0, 0);
	assert_that(result == 0, "LOG");
}

void hypercall_exit(u8 code) {
	hypercall(CALL_EXIT, code, 0, 0);
	__builtin_unreachable();
}

void hypercall_memset(void *to, u8 byte, u64 n) {
	i64 result = hypercall(CALL_MEMSET, physical(to), byte, n);
	assert_that(result == 0, "MEMSET");
}

void hypercall_memclr(void *to, u64 n) {
	i64 result = hypercall(CALL_MEMCLR, physical(to), n, 0);
	assert_that(result == 0, "MEMCLR");
}

void notify_read(u64 ring) { hypercall(CALL_NOTIFY_READ, ring, 0, 0); }
void notify_write(u64 ring) { hypercall(CALL_NOTIFY_WRITE, ring, 0, 0); }

static void console_write(const char *data, u64 n) {
	for (u64 i = 0; i < n; i++)
		asm volatile("outb %0, %1" ::"a"(data[i]), "d"((u16)CONSOLE_PORT));
}

static void console(const char *pattern, ...) {
	char line[512];
	__builtin_va_list list;

	__builtin_va_start(list, pattern);
	console_write(line, format_list(line, sizeof line, pattern, list));
	__builtin_va_end(list);
}

u64 symbol(char *to, u64 cap, u64 address) {
	char name[128];
	struct {
		u64 address, offset;
		u8 found;
		struct text_record name;
		u64 length;
	} r = {.address = address, .name = text_record(name, sizeof name)};
	_Static_assert(sizeof r == 48, "layout");

	if (hypercall(CALL_SYMNAME, physical(&r), 0, 0) || !r.found)
		return format(to, cap, "?");
	assert_that(r.address + r.offset == address, "SYMNAME");
	struct text t = {name, MIN(r.length, sizeof name)};
	return format(to, cap, "%t+%u", &t, r.offset);
}

/*
 * Like the real ones it asks for the return address as it is: after a call that
 * doesn't return, that may be the start of the next function.
 */
static void print_frame(u64 number, u64 address) {
	char name[160];
	struct text t = {name, symbol(name, sizeof name, address)};
	console("%u: %x - %t\n", number, address, &t);
}

void panic(const char *pattern, ...) {
	static u32 panicking;
	char message[512];
	__builtin_va_list list;

	interrupts_off();
	while (__atomic_exchange_n(&panicking, 1, __ATOMIC_RELAXED))
		relax();
	__builtin_va_start(list, pattern);
	u64 n = format_list(message, sizeof message, pattern, list);
	__builtin_va_end(list);
	console("KERNEL PANIC: ");
	console_write(message, n);
	console("\nbacktrace:\n");
	u64 number = 0;
	for (const u64 *f = __builtin_frame_address(0); f && number < 32; f = (const u64 *)f[0]) {
		if (!f[1])
			break;
		print_frame(number++, f[1]);
	}
	hypercall_exit(1);
}
