/*
 * Streams: the guest's end of pipes. PROTOCOL.md, sections 7, 8 and 12.
 *
 * A stream's own cursors live here and are never read back from the window. The
 * read cursor is told to the monitor late: when a quarter of the ring has been
 * consumed, or before the thread sleeps, so that a monitor that waits for room
 * is woken once for many bytes.
 */
#include "internal.h"

enum { OPEN, CLOSED, RESET };
enum { NEW_STREAM_REQUEST = 1, DATA_STREAM_INFO = 2 };

/*
 * By slot. A stream's memory stays with its slot for ever, so that a late
 * pending bit finds a stream, if not its own.
 */
static struct stream **streams;
static struct channel control;

static struct stream *stream_at(const struct pipe_descriptor *d) {
	u64 slot = (u32)d->id;
	u8 *window = virtual(boot->window_base);
	struct stream *s = streams[slot];

	if (!s && !(s = memory_alloc(sizeof *s)))
		return NULL;
	s->id = d->id;
	s->out = (struct ring_header *)(window + d->header);
	s->in = s->out + 1;
	s->out_data = window + d->outgoing;
	s->in_data = window + d->incoming;
	s->out_size = d->outgoing_size;
	s->in_size = d->incoming_size;
	s->out_cursor = s->in_cursor = s->in_published = 0;
	s->out_closed = s->in_closed = 0;
	s->reader = s->writer = NULL;
	streams[slot] = s;
	return s;
}

void streams_init(void) {
	streams = memory_alloc(boot->stream_limit * sizeof *streams);
	struct stream *s = streams ? stream_at(&boot->control_pipe) : NULL;
	if (!s || channel_start(&control, s))
		panic("no memory for streams");
}

int stream_open(struct stream **s, u32 outgoing_size, u32 incoming_size) {
	struct {
		struct frame_header header;
		u32 outgoing_size, incoming_size, home_cpu, reserved;
	} request = {{16, NEW_STREAM_REQUEST, 0, 0}, outgoing_size, incoming_size, this_cpu()->index, 0};
	struct {
		u32 status, unused;
		struct pipe_descriptor pipe;
	} answer;
	i64 n = channel_call(&control, &request.header, DATA_STREAM_INFO, &answer, sizeof answer);

	if (n < 0)
		return n;
	if (n >= 4 && answer.status)
		return -(int)answer.status;
	if (n < (i64)sizeof answer || (u32)answer.pipe.id >= boot->stream_limit)
		return -EPROTO;
	*s = stream_at(&answer.pipe);
	return *s ? 0 : -ENOMEM;
}

static void wake_event(u64 event) {
	struct stream *s = streams[event / 2];
	if (!s)
		return;
	struct thread *t = __atomic_load_n(event & 1 ? &s->writer : &s->reader, __ATOMIC_RELAXED);
	if (t)
		thread_wake(t);
}

void streams_take_pending(struct pending *p) {
	u64 top = __atomic_exchange_n(&p->top, 0, __ATOMIC_ACQ_REL);
	for (; top; top &= top - 1) {
		u64 m = __builtin_ctzl(top);
		u64 mid = __atomic_exchange_n(&p->mid[m], 0, __ATOMIC_ACQ_REL);
		for (; mid; mid &= mid - 1) {
			u64 l = 64 * m + __builtin_ctzl(mid);
			u64 leaf = __atomic_exchange_n(&p->leaf[l], 0, __ATOMIC_ACQ_REL);
			for (; leaf; leaf &= leaf - 1)
				wake_event(64 * l + __builtin_ctzl(leaf));
		}
	}
}

static void wake_monitor_reader(struct stream *s) {
	full_fence();
	if (__atomic_load_n(&s->out->reader_waiting, __ATOMIC_RELAXED) && __atomic_exchange_n(&s->out->reader_waiting, 0, __ATOMIC_SEQ_CST))
		notify_read(s->id);
}

static void wake_monitor_writer(struct stream *s) {
	full_fence();
	if (__atomic_load_n(&s->in->writer_waiting, __ATOMIC_RELAXED) && __atomic_exchange_n(&s->in->writer_waiting, 0, __ATOMIC_SEQ_CST))
		notify_write(s->id);
}

static void publish_consumed(struct stream *s) {
	if (s->in_published == s->in_cursor || s->in_closed)
		return;
	s->in_published = s->in_cursor;
	__atomic_store_n(&s->in->read_cursor, s->in_cursor, __ATOMIC_RELEASE);
	wake_monitor_writer(s);
}

/* The errno of a reset; also for a state that doesn't exist. */
static int state_error(u32 state) {
	if ((state & 0xFFFF) != RESET)
		return -EPROTO;
	return state >> 16 ? -(int)(state >> 16) : -ECONNRESET;
}

/*
 * What is readable now. The state is read before the cursor: a writer moves its
 * cursor last before it closes.
 */
static i64 readable(struct stream *s, int *ended) {
	u32 state = __atomic_load_n(&s->in->writer_state, __ATOMIC_ACQUIRE);
	u64 n = __atomic_load_n(&s->in->write_cursor, __ATOMIC_ACQUIRE) - s->in_cursor;

	if ((state & 0xFFFF) > CLOSED)
		return state_error(state);
	if (n > s->in_size)
		return -EPROTO;
	*ended = state == CLOSED;
	return n;
}

static i64 writable(struct stream *s) {
	u32 state = __atomic_load_n(&s->out->reader_state, __ATOMIC_ACQUIRE);
	u64 n = s->out_size - (s->out_cursor - __atomic_load_n(&s->out->read_cursor, __ATOMIC_ACQUIRE));

	if (state == CLOSED)
		return -EPIPE;
	if (state != OPEN)
		return state_error(state);
	return n > s->out_size ? -EPROTO : (i64)n;
}

u64 stream_readable_len(struct stream *s) {
	int ended;
	return MAX(readable(s, &ended), 0);
}

static i64 wait_readable(struct stream *s) {
	int ended;
	i64 n = readable(s, &ended);

	if (n || ended)
		return n;
	publish_consumed(s);
	__atomic_store_n(&s->reader, thread_current(), __ATOMIC_RELAXED);
	for (;;) {
		__atomic_exchange_n(&s->in->reader_waiting, 1, __ATOMIC_SEQ_CST);
		n = readable(s, &ended);
		if (n || ended)
			break;
		thread_sleep();
	}
	__atomic_store_n(&s->in->reader_waiting, 0, __ATOMIC_RELAXED);
	return n;
}

i64 stream_wait_writable(struct stream *s) {
	i64 n;

	if (s->out_closed)
		return -EPIPE;
	n = writable(s);
	if (n)
		return n;
	publish_consumed(s);
	__atomic_store_n(&s->writer, thread_current(), __ATOMIC_RELAXED);
	for (;;) {
		__atomic_exchange_n(&s->out->writer_waiting, 1, __ATOMIC_SEQ_CST);
		n = writable(s);
		if (n)
			break;
		thread_sleep();
	}
	__atomic_store_n(&s->out->writer_waiting, 0, __ATOMIC_RELAXED);
	return n;
}

i64 stream_peek(struct stream *s, u8 **data) {
	u64 at = s->in_cursor & (s->in_size - 1);
	i64 n = s->in_closed ? 0 : wait_readable(s);

	*data = s->in_data + at;
	return MIN(n, (i64)(s->in_size - at));
}

void stream_consume(struct stream *s, u64 n) {
	s->in_cursor += n;
	if (s->in_cursor - s->in_published >= s->in_size / 4)
		publish_consumed(s);
}

i64 stream_reserve(struct stream *s, u8 **data) {
	u64 at = s->out_cursor & (s->out_size - 1);
	i64 n = stream_wait_writable(s);

	*data = s->out_data + at;
	return MIN(n, (i64)(s->out_size - at));
}

void stream_commit(struct stream *s, u64 n) {
	s->out_cursor += n;
	__atomic_store_n(&s->out->write_cursor, s->out_cursor, __ATOMIC_RELEASE);
	wake_monitor_reader(s);
}

i64 stream_read(struct stream *s, void *to, u64 n) {
	u8 *data;
	i64 readable = stream_peek(s, &data);

	if (readable <= 0)
		return readable;
	n = MIN(n, (u64)readable);
	memcpy(to, data, n);
	stream_consume(s, n);
	return n;
}

int stream_read_full(struct stream *s, void *to, u64 n) {
	while (n) {
		i64 done = stream_read(s, to, n);
		if (done <= 0)
			return done ? done : -EIO;
		to = (u8 *)to + done;
		n -= done;
	}
	return 0;
}

int stream_skip(struct stream *s, u64 n) {
	while (n) {
		u8 *data;
		i64 part = stream_peek(s, &data);
		if (part <= 0)
			return part ? part : -EIO;
		part = MIN((u64)part, n);
		stream_consume(s, part);
		n -= part;
	}
	return 0;
}

/* Moves the cursor once for what fits, also around the end of the ring. */
int stream_write(struct stream *s, const void *from, u64 n) {
	while (n) {
		u64 at = s->out_cursor & (s->out_size - 1), first;
		i64 room = stream_wait_writable(s);
		if (room < 0)
			return room;
		u64 now = MIN(n, (u64)room);
		first = MIN(now, s->out_size - at);
		memcpy(s->out_data + at, from, first);
		if (now > first)
			memcpy(s->out_data, (const u8 *)from + first, now - first);
		stream_commit(s, now);
		from = (const u8 *)from + now;
		n -= now;
	}
	return 0;
}

/*
 * A change of state is always signalled. After the later of the two the pipe is
 * free, and its slot may already serve another stream: so the id is taken
 * before.
 */
static void end_write(struct stream *s, u32 state) {
	u64 id = s->id;

	if (s->out_closed)
		return;
	s->out_closed = 1;
	__atomic_store_n(&s->out->writer_state, state, __ATOMIC_RELEASE);
	notify_read(id);
}

static void end_read(struct stream *s, u32 state) {
	u64 id = s->id;

	if (s->in_closed)
		return;
	publish_consumed(s);
	s->in_closed = 1;
	__atomic_store_n(&s->in->reader_state, state, __ATOMIC_RELEASE);
	notify_write(id);
}

void stream_close_write(struct stream *s) {
	end_write(s, CLOSED);
}

void stream_close_read(struct stream *s) {
	end_read(s, CLOSED);
}

void stream_reset(struct stream *s, u32 error) {
	end_write(s, error << 16 | RESET);
	end_read(s, error << 16 | RESET);
}

void stream_close(struct stream *s) {
	end_write(s, CLOSED);
	end_read(s, CLOSED);
}
