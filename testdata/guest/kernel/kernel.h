/*
 * The guest kernel's whole interface. A program includes this file and defines
 * program_main. Numbers and layouts are those of PROTOCOL.md. Functions that
 * can fail return a negative errno.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include "base.h"

/* --- memory (memory.c) --- */

/* Zeroed memory, aligned to its size up to a page; NULL when RAM is used up. */
void *memory_alloc(u64 size);
/* size must be the one given to memory_alloc. */
void memory_free(void *p, u64 size);

/* --- hypercalls (hypercall.c) --- */

enum { LOG_ERROR = 1, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/*
 * One log record; the text is cut at 512 bytes. The target is the program's
 * name.
 */
#define log(level, ...) log_record(level, __FILE__, __LINE__, __VA_ARGS__)
void log_record(int level, const char *file, u32 line, const char *pattern, ...);

void console_write(const void *data, u64 n);

_Noreturn void program_exit(u8 code);

#define panic(...) panic_at(NULL, __VA_ARGS__)
_Noreturn void panic_at(const struct frame *frame, const char *pattern, ...);

/*
 * Zeroes memory by the monitor. The pages of what is large go back to the host
 * until they are touched again.
 */
void memory_clear(void *p, u64 n);

enum { CLOCK_WALL, CLOCK_ELAPSED };
enum { FEATURE_CLOCK = 1 << 7 }; /* of the boot block */

/*
 * Nanoseconds, as the host has them now: since 1970 (CLOCK_WALL; the host may
 * set it), or since before the start (CLOCK_ELAPSED; it never goes back, and a
 * suspended host's time counts). -ENOSYS from a monitor without FEATURE_CLOCK.
 */
i64 clock_read(u64 clock);

void notify_read(u64 pipe);
void notify_write(u64 pipe);

/* --- processors (cpu.c) --- */

struct pipe_descriptor {
	u64 id, header, outgoing, incoming;
	u32 outgoing_size, incoming_size;
};

struct boot_block {
	u64 magic;
	u32 version, size, cpu_count, stream_limit;
	u64 ram_base, ram_size, free_base, free_size, window_base, window_size;
	struct pipe_descriptor control_pipe;
	u64 pending_offset, pending_stride;
	u8 stream_vector, stop_vector;
	u16 reserved0;
	u32 arg_count;
	u64 args;
	i64 wall_seconds;
	u32 wall_nanoseconds, reserved1;
	u64 wall_tsc, tsc_hz, features, reserved2;
};

/* Set before program_main starts, never written again. */
extern const struct boot_block *boot;
/* The time stamp counter at CPU 0's first instruction. */
extern u64 first_tsc;

struct text arg(u32 n);

static inline u64 rdtsc(void) {
	u32 low, high;
	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

struct thread;

struct pending {
	u64 top, unused[7], mid[64], leaf[];
};

enum { MAX_CPUS = 64 };

struct cpu {
	struct cpu *self;
	u32 index;
	struct thread *current;
	/* Run queue, touched by this CPU only. */
	struct thread *first, *last;
	struct thread *free_threads;
	struct pending *pending;
	/* Threads that other CPUs woke, newest first; atomic. */
	struct thread *remote;
	/*
	 * 1 while this CPU halts or is about to: a CPU that pushes to remote then
	 * sends an interrupt.
	 */
	u32 idle;
	u64 gdt[5];
	u32 tss[26];
	struct { u64 low, high; } idt[256];
	u8 fault_stack[4096] __attribute__((aligned(16)));
};

extern struct cpu cpus[MAX_CPUS];

static inline struct cpu *this_cpu(void) {
	struct cpu *c;
	asm volatile("mov %%gs:0, %0" : "=r"(c));
	return c;
}

/* Interrupts another CPU that halts. */
void cpu_kick(struct cpu *c);
/* Halts until the next interrupt. Interrupts are on nowhere else. */
void cpu_halt(void);

/* 1 once the monitor has asked the guest to stop. */
extern u32 stop_requested;
/*
 * The calling thread sleeps until the monitor asks the guest to stop; one
 * thread on CPU 0 only.
 */
void wait_for_stop(void);

/* --- threads (thread.c): cooperative, each bound to one CPU --- */

enum { STACK_SIZE = 16384 };

/* Starts a thread on a CPU; -ENOMEM. A thread ends by returning. */
int thread_start(u32 cpu, void (*function)(void *), void *argument);
/* Lets the CPU's other threads run. */
void thread_yield(void);
/*
 * Sleeps until thread_wake; returns at once if it came since the last
 * thread_sleep. May return for no reason.
 */
void thread_sleep(void);
/* From any CPU. */
void thread_wake(struct thread *t);
static inline struct thread *thread_current(void) { return this_cpu()->current; }

/* For critical sections of some instructions, without calls that sleep. */
struct spinlock {
	u32 taken;
};
void spin_lock(struct spinlock *l);
void spin_unlock(struct spinlock *l);

/* For sections that sleep. */
struct mutex {
	struct spinlock lock;
	u32 taken;
	struct waiter *first, *last;
};
void mutex_lock(struct mutex *m);
void mutex_unlock(struct mutex *m);

/* --- streams (stream.c) --- */

struct ring_header {
	u64 write_cursor;
	u32 writer_state, writer_waiting;
	u8 unused0[48];
	u64 read_cursor;
	u32 reader_state, reader_waiting;
	u8 unused1[48];
};

/* At most one thread reads and one thread writes at a time; they may differ. */
struct stream {
	u64 id;
	struct ring_header *out, *in;
	u8 *out_data, *in_data;
	u32 out_size, in_size;
	u64 out_cursor;       /* ours: the write cursor of the outgoing ring */
	u64 in_cursor;        /* ours: the read cursor of the incoming ring */
	u64 in_published;     /* what the monitor knows of it */
	u8 out_closed, in_closed;
	struct thread *reader, *writer; /* who sleeps, or slept last */
};

/*
 * Asks for a pipe with these ring sizes, whose signals come to the calling CPU.
 */
int stream_open(struct stream **s, u32 outgoing_size, u32 incoming_size);

/* Reads 1 to n bytes; waits for the first. 0 at the end. */
i64 stream_read(struct stream *s, void *to, u64 n);
/* Reads all n bytes: 0; -EIO if the stream ends before. */
int stream_read_full(struct stream *s, void *to, u64 n);
/* Reads n bytes and drops them: 0, as above. */
int stream_skip(struct stream *s, u64 n);
/* Writes all n bytes: 0. */
int stream_write(struct stream *s, const void *from, u64 n);

/*
 * Zero copy. stream_peek waits until something is readable and gives the part
 * that lies in one piece: its length, or 0 at the end. stream_consume gives the
 * first n bytes of it back. stream_reserve waits until something is writable
 * and gives the part in one piece; stream_commit sends the first n bytes of it.
 */
i64 stream_peek(struct stream *s, u8 **data);
void stream_consume(struct stream *s, u64 n);
i64 stream_reserve(struct stream *s, u8 **data);
void stream_commit(struct stream *s, u64 n);
/*
 * As stream_reserve, but what is writable in all: also beyond the ring's end,
 * and so for moving the cursor over data that is there already.
 */
i64 stream_wait_writable(struct stream *s);
/* How much is readable right now, without waiting. */
u64 stream_readable_len(struct stream *s);

/* No more bytes from here; the other direction stays open. */
void stream_close_write(struct stream *s);
/* No more bytes wanted. */
void stream_close_read(struct stream *s);
/*
 * Both ends fail with this errno, what is under way is dropped. The stream is
 * gone after it.
 */
void stream_reset(struct stream *s, u32 error);
/* Closes what is open. The stream is gone after it. */
void stream_close(struct stream *s);

void streams_init(void);
/* Takes this CPU's pending bitmap and wakes the threads it names. */
void streams_take_pending(struct pending *p);

/* --- frames and calls (call.c) --- */

struct frame_header {
	u32 length;
	u16 kind, flags;
	u64 request_id;
};
enum { FRAME_MORE = 1 };

/*
 * A stream that speaks frames, whose answers are dealt to the threads that
 * asked. Any number of threads may call.
 */
struct channel {
	struct stream *stream;
	struct mutex send;
	struct spinlock lock; /* of calls and error */
	struct call *calls;
	int error;
};

/*
 * Takes one frame of an answer: reads its whole payload, header->length bytes,
 * from s. It runs in the dispatcher's thread, which deals no other answer
 * meanwhile. Of what it returns, an errno ends the channel.
 */
typedef int answer_taker(void *argument, struct stream *s, const struct frame_header *header);

/*
 * Starts the dispatcher; the channel must stay where it is until the VM ends.
 */
int channel_start(struct channel *c, struct stream *s);
/*
 * Sends a request and sleeps until take has had its answer, the last frame of
 * which has no FRAME_MORE; sets the request id. The payload of request->length
 * bytes is the first ones right after the header, and then the parts. 0, or
 * -ECONNRESET.
 */
int channel_request(struct channel *c, struct frame_header *request, u32 first, const struct text *parts, u32 count, answer_taker *take, void *argument);
/*
 * The same for a request whose whole payload lies right after its header, and
 * an answer of one frame of this kind. The length of its payload, cut at cap.
 */
i64 channel_call(struct channel *c, struct frame_header *request, u16 answer_kind, void *answer, u64 cap);
/*
 * Sends no more. When the monitor closes its end in turn, calls under way fail
 * with -ECONNRESET.
 */
void channel_close(struct channel *c);

/* --- the program --- */

/* Runs in a thread of its own on CPU 0; its result is the exit code. */
int program_main(void);

#endif
