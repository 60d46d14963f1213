/*
 * The hypercalls of the oldest kernels, and what is left of the control pipe:
 * arguments and exit.
 */
#include "host.h"

u64 number_count;
static const u64 *numbers;

u64 number(u64 n) { return n < number_count ? numbers[n] : 0; }

/*
 * Named as the real kernels' is, mangled: by such a symbol and none of a module
 * pipe the monitor tells what this image speaks.
 */
i64 host_call(u64 call, u64 offset) {
	asm volatile("outb %%al, %%dx" : "+a"(call) : "d"(0), "D"(offset) : "memory");
	return call;
}

/*
 * An interrupt between the look and the halt is made up for by the next one of
 * the timer.
 */
static void wait_for(const u8 *done) {
	while (!__atomic_load_n(done, __ATOMIC_ACQUIRE))
		halt_with_interrupts();
}

void tcp_call(u64 call, struct tcp_info *r) {
	r->done = 0;
	i64 result = host_call(call, offset_of(r));
	assert_that(result == 0, "a call about a socket");
	wait_for(&r->done);
}

void file_call(u64 call, struct file_info *r) {
	r->done = 0;
	i64 result = host_call(call, offset_of(r));
	assert_that(result == 0, "a call about a file");
	wait_for(&r->done);
}

/* RDX has the number of arguments, RCX their offset; R8 and R9 nothing. */
void control_init(const struct entry *e) {
	assert_that(e->tx == 0 && e->tx_length == 0 && (e->rx == 0) == (e->rx_length == 0), "registers at entry");
	number_count = e->rx;
	if (number_count)
		numbers = at(e->rx_length);
}

void control_exit(i32 code) { hypercall_exit(code); }
void control_stop(void) { hypercall_exit(0); }
