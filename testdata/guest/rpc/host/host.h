/*
 * Sockets and files by hypercalls: what the oldest kernels do instead of pipes.
 * Records lie on the caller's stack, as theirs do. A call that isn't done at
 * once is waited for as they wait: by halting until the next timer interrupt.
 */
#ifndef HOST_H
#define HOST_H

#include "../kernel/rpc.h"

enum { TCP_CONNECT = 5, TCP_LISTEN, TCP_ACCEPT, TCP_CLOSE, TCP_SEND, TCP_RECV, FILE_OPEN, FILE_CLOSE, FILE_READ, FILE_WRITE, FILE_SEEK };

struct tcp_info {
	u64 id, buf, len;
	u8 ip[4];
	u16 port;
	u8 done;
};
_Static_assert(sizeof(struct tcp_info) == 32, "layout");

struct file_info {
	u64 buf;
	i64 offset, whence;
	u64 len, id;
	u8 read, write, create, append, truncate, done;
};
_Static_assert(sizeof(struct file_info) == 48, "layout");

/* The kernel's arguments, all of them numbers. */
extern u64 number_count;
u64 number(u64 n);

/* Begins a call and returns at once. offset is the record's. */
i64 host_call(u64 call, u64 offset) asm("_ZN6kernel4host3net4call17h0123456789abcdefE");
/* Makes a call and waits until it is done. */
void tcp_call(u64 call, struct tcp_info *r);
void file_call(u64 call, struct file_info *r);

#endif
