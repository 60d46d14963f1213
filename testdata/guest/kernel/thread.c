/*
 * Cooperative threads, each bound to a CPU. Interrupts are off while a thread
 * runs: the scheduler looks into memory for what they have to say, and halts
 * with them on when there is nothing to run.
 */
#include "internal.h"

enum { RUNNING, NOTIFIED, SLEEPING };
enum { CANARY = 0x57ACC0DE };

/*
 * Lies at the bottom of its stack; the canary is the last word that the stack
 * may reach.
 */
struct thread {
	u64 rsp;
	struct thread *next; /* in a run queue, a remote list or a free list: one at most */
	struct cpu *cpu;
	void (*function)(void *);
	void *argument;
	u32 state; /* atomic */
	u64 canary;
};

void switch_context(u64 *save, u64 load);

static void push(struct cpu *c, struct thread *t) {
	t->next = NULL;
	if (c->first)
		c->last->next = t;
	else
		c->first = t;
	c->last = t;
}

static struct thread *pop(struct cpu *c) {
	struct thread *t = c->first;
	if (t)
		c->first = t->next;
	return t;
}

/* The list is newest first; the run queue wants the oldest first. */
static void take_remote(struct cpu *c) {
	struct thread *t = __atomic_exchange_n(&c->remote, NULL, __ATOMIC_ACQUIRE), *oldest = NULL;
	while (t) {
		struct thread *next = t->next;
		t->next = oldest;
		oldest = t;
		t = next;
	}
	while (oldest) {
		struct thread *next = oldest->next;
		push(c, oldest);
		oldest = next;
	}
}

static int something_arrived(struct cpu *c) {
	return __atomic_load_n(&c->pending->top, __ATOMIC_RELAXED) || __atomic_load_n(&c->remote, __ATOMIC_RELAXED) ||
	       (c->index == 0 && __atomic_load_n(&stop_requested, __ATOMIC_RELAXED) == 1);
}

/*
 * Runs what is next; comes back when it's the caller's turn. Halts on the
 * caller's stack while nothing is ready.
 */
static void schedule(void) {
	struct cpu *c = this_cpu();
	struct thread *self = c->current, *t;

	if (self->canary != CANARY)
		panic("stack overflow in a thread");
	for (;;) {
		if (__atomic_load_n(&c->pending->top, __ATOMIC_RELAXED))
			streams_take_pending(c->pending);
		if (__atomic_load_n(&c->remote, __ATOMIC_RELAXED))
			take_remote(c);
		if (c->index == 0 && __atomic_load_n(&stop_requested, __ATOMIC_RELAXED) == 1) {
			__atomic_store_n(&stop_requested, 2, __ATOMIC_RELAXED);
			stop_wake();
		}
		t = pop(c);
		if (t)
			break;
		/*
		 * Either the waker sees idle and kicks, or this CPU sees what arrived.
		 */
		__atomic_exchange_n(&c->idle, 1, __ATOMIC_SEQ_CST);
		if (!something_arrived(c))
			cpu_halt();
		__atomic_store_n(&c->idle, 0, __ATOMIC_RELAXED);
	}
	if (t == self)
		return;
	c->current = t;
	switch_context(&self->rsp, t->rsp);
}

static void make_ready(struct thread *t) {
	struct cpu *c = t->cpu;

	if (c == this_cpu()) {
		push(c, t);
		return;
	}
	struct thread *head = __atomic_load_n(&c->remote, __ATOMIC_RELAXED);
	do {
		t->next = head;
	} while (!__atomic_compare_exchange_n(&c->remote, &head, t, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	if (!head && __atomic_load_n(&c->idle, __ATOMIC_SEQ_CST))
		cpu_kick(c);
}

void thread_yield(void) {
	struct cpu *c = this_cpu();
	if (!c->first && !something_arrived(c))
		return;
	push(c, c->current);
	schedule();
}

void thread_sleep(void) {
	struct thread *t = thread_current();
	u32 state = RUNNING;
	if (__atomic_compare_exchange_n(&t->state, &state, SLEEPING, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		schedule();
	__atomic_store_n(&t->state, RUNNING, __ATOMIC_SEQ_CST);
}

void thread_wake(struct thread *t) {
	if (__atomic_exchange_n(&t->state, NOTIFIED, __ATOMIC_SEQ_CST) == SLEEPING)
		make_ready(t);
}

static void thread_begin(void) {
	struct thread *t = thread_current();
	struct cpu *c = t->cpu;

	t->function(t->argument);
	/*
	 * The stack stays in use until another thread runs; only such a thread can
	 * take it from the list.
	 */
	t->next = c->free_threads;
	c->free_threads = t;
	schedule();
	panic("a thread that has ended runs");
}

static void prepare(struct thread *t, struct cpu *c, u64 size, void (*function)(void *), void *argument) {
	u64 *top = (u64 *)((u8 *)t + size);

	*--top = 0; /* a backtrace ends here */
	*--top = 0;
	*--top = 0; /* thread_begin's return address */
	*--top = (u64)thread_begin;
	top -= 6;
	memset(top, 0, 6 * sizeof *top);
	t->rsp = (u64)top;
	t->cpu = c;
	t->function = function;
	t->argument = argument;
	t->state = RUNNING;
	t->canary = CANARY;
}

int thread_start(u32 cpu, void (*function)(void *), void *argument) {
	struct cpu *here = this_cpu();
	struct thread *t = here->free_threads;

	if (t)
		here->free_threads = t->next;
	else if (!(t = memory_alloc(STACK_SIZE)))
		return -ENOMEM;
	prepare(t, &cpus[cpu], STACK_SIZE, function, argument);
	make_ready(t);
	return 0;
}

_Noreturn void threads_run(void (*first)(void *), void *stack, u64 stack_size) {
	static struct thread idle[MAX_CPUS];
	struct cpu *c = this_cpu();
	struct thread *self = &idle[c->index];

	self->cpu = c;
	self->canary = CANARY;
	c->current = self;
	if (first) {
		prepare(stack, c, stack_size, first, NULL);
		push(c, stack);
	}
	for (;;)
		schedule();
}

void spin_lock(struct spinlock *l) {
	while (__atomic_exchange_n(&l->taken, 1, __ATOMIC_ACQUIRE))
		while (__atomic_load_n(&l->taken, __ATOMIC_RELAXED))
			asm volatile("pause");
}

void spin_unlock(struct spinlock *l) {
	__atomic_store_n(&l->taken, 0, __ATOMIC_RELEASE);
}

struct waiter {
	struct thread *thread;
	struct waiter *next;
	u32 granted;
};

void mutex_lock(struct mutex *m) {
	struct waiter w = {.thread = thread_current()};

	spin_lock(&m->lock);
	if (!m->taken) {
		m->taken = 1;
		spin_unlock(&m->lock);
		return;
	}
	if (m->first)
		m->last->next = &w;
	else
		m->first = &w;
	m->last = &w;
	spin_unlock(&m->lock);
	while (!__atomic_load_n(&w.granted, __ATOMIC_ACQUIRE))
		thread_sleep();
}

/* Hands the mutex to the thread that waits longest. */
void mutex_unlock(struct mutex *m) {
	spin_lock(&m->lock);
	struct waiter *w = m->first;
	if (w)
		m->first = w->next;
	else
		m->taken = 0;
	spin_unlock(&m->lock);
	if (w) {
		struct thread *t = w->thread;
		__atomic_store_n(&w->granted, 1, __ATOMIC_RELEASE); /* w is gone after this */
		thread_wake(t);
	}
}
