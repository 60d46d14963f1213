/*
 * What both guest kernels of this folder stand on: types, memory as bytes,
 * text.
 */
#ifndef BASE_H
#define BASE_H

/*
 * All symbols belong to one image, so every reference can be relative to RIP.
 */
#pragma GCC visibility push(hidden)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef signed int i32;
typedef signed long i64;

#define NULL ((void *)0)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

enum {
	ENOENT = 2,
	EIO = 5,
	ENOMEM = 12,
	EINVAL = 22,
	EMFILE = 24,
	EPIPE = 32,
	EPROTO = 71,
	ECONNRESET = 104,
};

/* Text, not NUL terminated. */
struct text {
	const char *data;
	u64 length;
};

/* --- memory and strings (bytes.c) --- */

void *memcpy(void *to, const void *from, u64 n);
void *memmove(void *to, const void *from, u64 n);
void *memset(void *to, int byte, u64 n);
int memcmp(const void *a, const void *b, u64 n);
u64 strlen(const char *s);
/* Small constant sizes need no call. */
#define memcpy __builtin_memcpy
#define memset __builtin_memset
#define memcmp __builtin_memcmp
/* The first such byte, or NULL. */
const void *memory_find(const void *data, u64 n, u8 byte);

#define DIRECT_MAP 0xFFFF800000000000ul

static inline u64 physical(const void *p) { return (u64)p & ~DIRECT_MAP; }
static inline void *virtual(u64 address) { return (void *)(address + DIRECT_MAP); }

/* --- text (format.c) --- */

/*
 * Writes at most cap bytes, returns how many. %s text up to NUL, %t struct
 * text *, %c, %d i64, %u u64, %x u64; all numbers are 64 bits wide, so cast
 * narrower arguments.
 */
u64 format(char *to, u64 cap, const char *pattern, ...);
/* Parses the whole of s as a decimal number; 0, or -EINVAL. */
int parse_number(struct text s, u64 *number);
int text_equal(struct text a, const char *b);
/* The same for a string literal, without a call. */
#define TEXT_IS(text, literal) ((text).length == sizeof(literal) - 1 && !memcmp((text).data, literal, sizeof(literal) - 1))

/* --- exceptions (exception.S, names.c) --- */

/*
 * What the processor pushed and the registers, in the layout of the panic
 * record's frame (PROTOCOL.md, section 6).
 */
struct frame {
	u64 rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15;
	u64 rip, rflags, vector, error_code, cr2;
};

/* 32 stubs of 16 bytes, by vector. */
extern u8 exception_stubs[];
/* What they call; each kernel has its own. */
_Noreturn void exception(const struct frame *frame);
/* vector is below 32. */
const char *exception_name(u64 vector);

#endif
