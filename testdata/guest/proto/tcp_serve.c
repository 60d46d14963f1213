/*
 * A thread per connection. Each CPU keeps some threads waiting in tcp_accept:
 * one that gets a connection starts its successor first, and a thread whose
 * connection has ended waits again only if too few others do.
 */
#include "tcp.h"

enum { ACCEPTS = 32 };

static struct tcp_listener *listener;
static int (*serve_connection)(struct stream *s, const struct endpoint *peer);
static u32 accepts_wanted;
static u32 accepting[MAX_CPUS]; /* each touched by its CPU only */

/* Threads that found no room for a pipe; the end of a connection makes some. */
struct starved {
	struct thread *thread;
	struct starved *next;
	u32 woken;
};
static struct spinlock starved_lock;
static struct starved *starved;
static u32 starved_logged;

static void wait_for_room(int error) {
	struct starved s = {.thread = thread_current()};

	if (!__atomic_exchange_n(&starved_logged, 1, __ATOMIC_RELAXED))
		log(LOG_WARNING, "no pipe for a further connection: error %d", -(i64)error);
	spin_lock(&starved_lock);
	s.next = starved;
	starved = &s;
	spin_unlock(&starved_lock);
	while (!__atomic_load_n(&s.woken, __ATOMIC_ACQUIRE))
		thread_sleep();
}

static void room_made(void) {
	if (!__atomic_load_n(&starved, __ATOMIC_RELAXED))
		return;
	spin_lock(&starved_lock);
	struct starved *s = starved;
	if (s)
		starved = s->next;
	spin_unlock(&starved_lock);
	if (s) {
		struct thread *t = s->thread;
		__atomic_store_n(&s->woken, 1, __ATOMIC_RELEASE); /* s is gone after this */
		thread_wake(t);
	}
}

/* The caller has counted itself in accepting. */
static void worker(void *unused) {
	u32 *count = &accepting[this_cpu()->index];
	struct stream *s;
	struct tcp_ends ends;

	(void)unused;
	for (;;) {
		int error = tcp_accept(listener, &s, &ends);
		if (error == -ENOMEM || error == -EMFILE) {
			wait_for_room(error);
			continue;
		}
		if (error) {
			if (!__atomic_load_n(&stop_requested, __ATOMIC_RELAXED))
				log(LOG_ERROR, "accept: error %d", -(i64)error);
			--*count;
			return;
		}
		if (--*count < accepts_wanted) {
			++*count;
			if (thread_start(this_cpu()->index, worker, NULL))
				--*count;
		}
		if (serve_connection(s, &ends.peer))
			stream_reset(s, ECONNRESET);
		else
			stream_close(s);
		room_made();
		if (*count >= accepts_wanted)
			return;
		++*count;
	}
}

/* Counts on the CPU that the count belongs to. */
static void first_worker(void *unused) {
	u32 *count = &accepting[this_cpu()->index];

	for (u32 n = 1; n < accepts_wanted; n++) {
		++*count;
		if (thread_start(this_cpu()->index, worker, NULL))
			--*count;
	}
	++*count;
	worker(unused);
}

int tcp_serve(struct tcp_listener *l, int (*serve)(struct stream *s, const struct endpoint *peer)) {
	listener = l;
	serve_connection = serve;
	accepts_wanted = MAX(ACCEPTS / boot->cpu_count, 1);
	for (u32 cpu = 0; cpu < boot->cpu_count; cpu++) {
		int error = thread_start(cpu, first_worker, NULL);
		if (error)
			return error;
	}
	return 0;
}
