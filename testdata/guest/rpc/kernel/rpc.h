/*
 * A guest kernel of Arca's older request/response ABI: its whole interface. A
 * program includes this file and defines program_main.
 *
 * It does what the real kernels do, also where that is not what one would wish:
 * it trusts what the monitor answers and panics at anything else, waits by
 * spinning, never signals unless it was started with --notify, takes memory for
 * every message from the allocator that it shares with the monitor.
 */
#ifndef RPC_H
#define RPC_H

#include "../../kernel/base.h"

enum { LOG_ERROR = 1, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* --- hypercalls (call.c) --- */

/* One log record; the text is cut at 512 bytes. */
#define log(level, ...) log_record(level, __FILE__, __LINE__, __VA_ARGS__)
/*
 * file == NULL: a record with none of the things it can do without, and garbage
 * in their place.
 */
void log_record(int level, const char *file, u32 line, const char *pattern, ...);
_Noreturn void panic(const char *pattern, ...);
_Noreturn void hypercall_exit(u8 code);
void hypercall_memset(void *to, u8 byte, u64 n);
void hypercall_memclr(void *to, u64 n);
/*
 * Formats an address by the image's symbols, as name+offset or ?; returns the
 * length.
 */
u64 symbol(char *to, u64 cap, u64 address);
void notify_read(u64 ring);
void notify_write(u64 ring);

static inline void assert_that(int ok, const char *what) {
	if (!ok)
		panic("assertion failed: %s", what);
}

/* --- processors (cpu.c) --- */

/* What a CPU finds when it starts; start.S builds it. */
struct entry {
	u64 cpus, allocator, rx, rx_length, tx, tx_length;
	u64 rsp, rbp, rflags;
};

/* What only one CPU uses; the fields before index are the template's. */
struct percpu {
	struct percpu *self;
	u64 magic;
	u64 gdt[5];
	u32 index;
	u64 timer_ticks;
	struct entry entry;
	/* When the CPU started. */
	u64 cr0, cr4, efer;
	u16 cs, ds, es, fs, gs;
	u32 tss[26];
	u8 fault_stack[4096] __attribute__((aligned(16)));
};

enum { MAX_CPUS = 64 };
extern struct percpu *cpus[MAX_CPUS];
extern u32 cpu_count;

static inline struct percpu *this_cpu(void) {
	struct percpu *c;
	asm volatile("mov %%gs:0, %0" : "=r"(c));
	return c;
}

/*
 * Runs f on every CPU at once, this one included, and waits until all have
 * returned.
 */
void run_everywhere(void (*f)(void));

/*
 * Whether the kernel announces by hypercalls what it does to rings, which it
 * does from --notify on. Then it knows vector 0x30, and waits by halting.
 */
extern u32 notifying;
/* How many interrupts of this vector came. */
extern u64 signals;

void relax(void);
void interrupts_off(void);
void halt_with_interrupts(void);
void interrupts_on(void);

/*
 * What has come true is not looked at again: a condition may take something, a
 * lock for instance.
 */
#define wait_until(condition)                   \
	for (int met = 0; !met && !(condition);) { \
		if (!notifying) {               \
			relax();                \
			continue;               \
		}                               \
		interrupts_off();               \
		met = !!(condition);            \
		if (!met)                       \
			halt_with_interrupts(); \
		interrupts_on();                \
	}

struct spinlock {
	u64 taken;
};
int spin_try(struct spinlock *l);
void spin_lock(struct spinlock *l);
void spin_unlock(struct spinlock *l);

/* --- the allocator that monitor and guest share (allocator.c) --- */

#define MEM_BASE 0x100000000ul

/* Offsets count from MEM_BASE. */
static inline void *at(u64 offset) { return virtual(MEM_BASE + offset); }
static inline u64 offset_of(const void *p) { return physical(p) - MEM_BASE; }

void allocator_init(u64 raw_offset);
u64 ram_size(void);
/*
 * A block for size bytes, a power of two of at least 4096. Panics when there is
 * none.
 */
void *block_alloc(u64 size);
/* size must be of the block's level. */
void block_free(void *block, u64 size);

/*
 * Which blocks are free: equal if and only if used and hash are, but for hash
 * collisions.
 */
struct allocator_state {
	u64 used, blocks, hash;
};
/*
 * Walks all lists under the lock and checks them against the bitmap; panics if
 * they don't fit.
 */
struct allocator_state allocator_state(void);
/*
 * Waits until the monitor, too, has given up what it still holds, and compares;
 * at most some seconds. 1: as before.
 */
int allocator_is_again(const struct allocator_state *before);

/* --- pipes (pipe.c) --- */

struct ring {
	u64 read_cursor, write_cursor;
	u8 writer_closed, reader_closed;
	u8 data[];
};

/* One request at a time. */
struct pipe {
	struct ring *rx, *tx;
	u64 rx_length, tx_length;
};

void pipe_attach(struct pipe *p, u64 rx, u64 rx_length, u64 tx, u64 tx_length);
void pipe_write(struct pipe *p, const void *data, u64 n);
void pipe_read(struct pipe *p, void *data, u64 n);
/* Drops both ends; the side that drops an end last frees its ring. */
void pipe_drop(struct pipe *p);

/* --- messages (message.c): postcard, in a block of their own --- */

struct message {
	u8 *start, *next, *end;
	u64 capacity;
};

/* room: an upper bound of what is put. */
void message_new(struct message *m, u64 room);
void put_byte(struct message *m, u8 value);
void put_varint(struct message *m, u64 value);
void put_signed(struct message *m, i64 value);
void put_bytes(struct message *m, const void *data, u64 n);
u8 get_byte(struct message *m);
u64 get_varint(struct message *m);
struct text get_bytes(struct message *m);
/* Asserts that everything was taken. */
void message_end(struct message *m);
/* Sends it, waits for the response, which replaces it. */
void pipe_request(struct pipe *p, struct message *m);
/* Takes the rest of a Pipe, the message's last. */
void take_pipe(struct message *m, struct pipe *p);

/* --- requests (control.c, data.c) --- */

void control_init(const struct entry *e);
/* Arguments; index 0 is the image. */
extern u64 arg_count;
struct text arg(u64 n);

enum { READ = 1, WRITE = 2, CREATE = 4, APPEND = 8, TRUNCATE = 16 };
/*
 * The kind of error, or -1. A kernel of --dialect-b is never told of an error.
 */
int file_open(struct pipe *p, struct text path, u32 mode);
int make_folder(struct text path);
void tcp_listen(struct pipe *p, const u8 ip[4], u16 port);
void tcp_connect(struct pipe *p, struct text host, u16 port);
/* Sends a request that is its number and no more, and waits for an answer. */
void control_request(u8 number);
/* Asks for the end of the VM. */
_Noreturn void control_exit(i32 code);
/* From an interrupt: no lock is waited for, nothing allocated. */
_Noreturn void control_stop(void);

enum { SEEK_START, SEEK_CURRENT, SEEK_END };
u64 file_read(struct pipe *p, void *to, u64 n);
u64 file_write(struct pipe *p, const void *from, u64 n);
u64 file_seek(struct pipe *p, int whence, i64 offset);
/* Waits for the acknowledgement, then drops the pipe; so do the other two. */
void file_close(struct pipe *p);

void listener_accept(struct pipe *listener, struct pipe *stream);
void listener_close(struct pipe *p);

u64 stream_send(struct pipe *p, const void *from, u64 n);
/* 1 to n bytes; 0 at the end. */
u64 stream_receive(struct pipe *p, void *to, u64 n);
void stream_close(struct pipe *p);

/* --- servers (serve.c) --- */

/*
 * The whole of a server's program_main: ADDRESS PORT [CONNECTIONS]. Every CPU
 * accepts and serves one connection after the other. With CONNECTIONS it ends
 * after that many and checks that everything was freed: 0, or 1.
 */
int serve(void (*connection)(struct pipe *stream));
int parse_address(struct text s, u8 ip[4]);

/* --- the program --- */

/* Runs on CPU 0; its result is the exit code. */
i32 program_main(void);

#endif
