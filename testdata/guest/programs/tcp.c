/*
 * tcp connect HOST:PORT STEP…
 * tcp accept ADDR:PORT STEP…
 *
 * Connects, or listens and takes one connection, and takes the steps on it, one
 * after the other. Logs "listening on ADDR:PORT", and of the connection "local
 * ADDR:PORT peer ADDR:PORT". Steps:
 *   delay, keep-alive=SECONDS, backlog=N
 *                       what it connects or listens with, wherever it stands;
 *                       65535 seconds: no keep-alive
 *   send=TEXT           fill=N: byte i is i, modulo 256
 *   take=N, read        prints N bytes, or all up to the end, to the console
 *   count               reads to the end, logs "read N bytes"
 *   flood               writes until that fails
 *   close-write         close-read
 *   reset               ends the steps
 * What fails is logged with its errno, and the next step is taken. At the end
 * the connection is closed. Exit code 1 if there was none.
 *
 * tcp cancel ADDR:PORT
 *
 * Listens, takes a waiting accept back, and then takes a connection, which it
 * sends a text.
 *
 * tcp again ADDR:PORT
 *
 * Listens, takes a connection and ends it first, stops listening while accepts
 * wait, and does the same once more on the same port.
 */
#include "../proto/tcp.h"

enum { ECANCELED = 125, WAITING = 3, BLOCK = 4096 };

static u8 block[BLOCK];
static struct stream *s;

static void report(const char *doing, i64 error) {
	if (error < 0)
		log(LOG_WARNING, "%s: error %d", doing, -error);
}

static int fail(const char *doing, i64 error) {
	report(doing, error);
	return 1;
}

/* Whether step is the name, or the name, = and a value. */
static int is(struct text step, const char *name, struct text *value) {
	u64 n = strlen(name);

	if (step.length < n || !text_equal((struct text){step.data, n}, name))
		return 0;
	if (step.length == n)
		return !value;
	*value = (struct text){step.data + n + 1, step.length - n - 1};
	return step.data[n] == '=';
}

static u64 number(struct text value) {
	u64 n;
	return parse_number(value, &n) ? 0 : n;
}

/* Reads up to n bytes, or to the end. How many, or an errno. */
static i64 read(u64 n, int print) {
	u64 total = 0;

	while (total < n) {
		u8 *data;
		i64 part = stream_peek(s, &data);
		if (part <= 0)
			return part ? part : (i64)total;
		part = MIN((u64)part, n - total);
		if (print)
			console_write(data, part);
		stream_consume(s, part);
		total += part;
	}
	return total;
}

static i64 fill(u64 n) {
	int error = 0;

	for (u64 part; n && !error; n -= part) {
		part = MIN(n, (u64)BLOCK);
		error = stream_write(s, block, part);
	}
	return error;
}

static void take_steps(void) {
	struct text value;

	for (u32 i = 3; i < boot->arg_count; i++) {
		struct text step = arg(i);
		if (is(step, "send", &value)) {
			report("write", stream_write(s, value.data, value.length));
		} else if (is(step, "fill", &value)) {
			report("write", fill(number(value)));
		} else if (is(step, "flood", NULL)) {
			report("write", fill(~0ul));
		} else if (is(step, "take", &value)) {
			report("read", read(number(value), 1));
		} else if (is(step, "read", NULL)) {
			report("read", read(~0ul, 1));
		} else if (is(step, "count", NULL)) {
			i64 n = read(~0ul, 0);
			report("read", n);
			if (n >= 0)
				log(LOG_INFO, "read %d bytes", n);
		} else if (is(step, "close-write", NULL)) {
			stream_close_write(s);
		} else if (is(step, "close-read", NULL)) {
			stream_close_read(s);
		} else if (is(step, "reset", NULL)) {
			stream_reset(s, ECONNRESET);
			return;
		}
	}
	stream_close(s);
}

static void log_ends(const struct tcp_ends *ends) {
	char local[ENDPOINT_TEXT], peer[ENDPOINT_TEXT];
	struct text l = {local, endpoint_format(local, &ends->local)}, p = {peer, endpoint_format(peer, &ends->peer)};

	log(LOG_INFO, "local %t peer %t", &l, &p);
}

static int listen(struct tcp_listener *l, const struct endpoint *where) {
	char name[ENDPOINT_TEXT];
	int error = tcp_listen(l, where, TCP_RING_SIZE, TCP_RING_SIZE);

	if (error)
		return error;
	struct text bound = {name, endpoint_format(name, &l->bound)};
	log(LOG_INFO, "listening on %t", &bound);
	return 0;
}

static int one_connection(int accept, const struct endpoint *where, struct text host) {
	static struct tcp_listener listener;
	struct tcp_ends ends;
	struct text value;
	int error;

	for (u32 i = 3; i < boot->arg_count; i++) {
		struct text step = arg(i);
		if (is(step, "delay", NULL))
			listener.options.flags |= TCP_DELAY;
		else if (is(step, "keep-alive", &value))
			listener.options.keep_alive = number(value);
		else if (is(step, "backlog", &value))
			listener.backlog = number(value);
	}
	if (accept) {
		error = listen(&listener, where);
		if (error)
			return fail("listen", error);
		error = tcp_accept(&listener, &s, &ends);
	} else
		error = tcp_connect_with(&s, where, host, listener.options, &ends);
	if (error)
		return fail(accept ? "accept" : "connect", error);
	log_ends(&ends);
	take_steps();
	return 0;
}

/* A thread that waits in tcp_accept. */
struct waiting {
	struct tcp_listener *listener;
	struct stream *stream;
	struct thread *parent;
	int error;
	u32 done;
};

static void wait_in_accept(void *argument) {
	struct waiting *w = argument;

	w->error = tcp_accept(w->listener, &w->stream, NULL);
	report("accept", w->error);
	__atomic_store_n(&w->done, 1, __ATOMIC_RELEASE);
	thread_wake(w->parent);
}

/* Starts a thread that waits, and lets it go so far. */
static int start_waiting(struct waiting *w, struct tcp_listener *l) {
	*w = (struct waiting){.listener = l, .parent = thread_current()};
	int error = thread_start(this_cpu()->index, wait_in_accept, w);

	while (!error && !__atomic_load_n(&w->stream, __ATOMIC_ACQUIRE) && !__atomic_load_n(&w->done, __ATOMIC_ACQUIRE))
		thread_yield();
	return error;
}

static int wait_for(struct waiting *w) {
	while (!__atomic_load_n(&w->done, __ATOMIC_ACQUIRE))
		thread_sleep();
	return w->error;
}

/*
 * Takes a connection, sends a text, ends it, and waits until the peer has ended
 * it, too.
 */
static int greet(struct tcp_listener *l) {
	struct tcp_ends ends;
	int error = tcp_accept(l, &s, &ends);

	if (error)
		return error;
	log_ends(&ends);
	error = stream_write(s, "hello\n", 6);
	stream_close_write(s);
	if (!error)
		error = MIN(read(~0ul, 0), 0);
	stream_close(s);
	return error;
}

static int cancel(const struct endpoint *where) {
	static struct tcp_listener listener;
	static struct waiting w;
	int error = listen(&listener, where);

	if (!error)
		error = start_waiting(&w, &listener);
	if (error)
		return fail("listen", error);
	stream_close_read(w.stream);
	if (wait_for(&w) != -ECANCELED)
		return 1;
	error = greet(&listener);
	return error ? fail("greet", error) : 0;
}

static int again(struct endpoint where) {
	static struct tcp_listener listeners[2];
	static struct waiting waiting[2][WAITING];

	for (u32 round = 0; round < 2; round++) {
		struct tcp_listener *l = &listeners[round];
		int error = listen(l, &where);
		if (error)
			return fail("listen", error);
		where = l->bound;
		error = greet(l);
		for (u32 i = 0; i < WAITING && !error; i++)
			error = start_waiting(&waiting[round][i], l);
		if (error)
			return fail("greet", error);
		tcp_stop_listening(l);
		for (u32 i = 0; i < WAITING; i++)
			if (wait_for(&waiting[round][i]) != -ECONNRESET)
				return 1;
	}
	return 0;
}

int program_main(void) {
	struct endpoint where;
	struct text host = {"", 0};

	for (u32 i = 0; i < BLOCK; i++)
		block[i] = i;
	if (boot->arg_count >= 3 && !endpoint_parse(arg(2), &where, &host)) {
		if (text_equal(arg(1), "connect"))
			return one_connection(0, &where, host);
		if (text_equal(arg(1), "accept"))
			return one_connection(1, &where, host);
		if (text_equal(arg(1), "cancel"))
			return cancel(&where);
		if (text_equal(arg(1), "again"))
			return again(where);
	}
	log(LOG_ERROR, "usage: tcp connect|accept ADDR:PORT STEP... | tcp cancel|again ADDR:PORT");
	return 64;
}
