/*
 * Requests and answers of many threads over one stream. The request id is the
 * address of the call that waits; a dispatcher thread deals the answers.
 */
#include "internal.h"

struct call {
	struct call *next, **previous;
	struct thread *thread;
	answer_taker *take;
	void *argument;
	int result;
	u32 done;
};

static void finish(struct call *call, int result) {
	struct thread *t = call->thread;
	call->result = result;
	__atomic_store_n(&call->done, 1, __ATOMIC_RELEASE); /* the call is gone after this */
	thread_wake(t);
}

static void unlink_call(struct call *call) {
	*call->previous = call->next;
	if (call->next)
		call->next->previous = call->previous;
}

static int deal_one(struct channel *c) {
	struct frame_header h;
	int error = stream_read_full(c->stream, &h, sizeof h);
	if (error)
		return error;
	struct call *call = (struct call *)h.request_id;
	error = call->take(call->argument, c->stream, &h);
	if (error || (h.flags & FRAME_MORE))
		return error;
	spin_lock(&c->lock);
	unlink_call(call);
	spin_unlock(&c->lock);
	finish(call, 0);
	return 0;
}

static void dispatch(void *argument) {
	struct channel *c = argument;
	int error;

	while (!(error = deal_one(c)))
		;
	spin_lock(&c->lock);
	c->error = error;
	struct call *calls = c->calls;
	c->calls = NULL;
	spin_unlock(&c->lock);
	while (calls) {
		struct call *next = calls->next;
		finish(calls, -ECONNRESET);
		calls = next;
	}
	stream_close(c->stream);
}

int channel_start(struct channel *c, struct stream *s) {
	*c = (struct channel){.stream = s};
	return thread_start(this_cpu()->index, dispatch, c);
}

int channel_request(struct channel *c, struct frame_header *request, u32 first, const struct text *parts, u32 count, answer_taker *take, void *argument) {
	struct call call = {.thread = thread_current(), .take = take, .argument = argument};

	request->request_id = (u64)&call;
	spin_lock(&c->lock);
	if (c->error) {
		spin_unlock(&c->lock);
		return -ECONNRESET;
	}
	call.next = c->calls;
	call.previous = &c->calls;
	if (call.next)
		call.next->previous = &call.next;
	c->calls = &call;
	spin_unlock(&c->lock);

	mutex_lock(&c->send);
	/*
	 * After an error the dispatcher ends too, and fails this call with the
	 * others.
	 */
	int error = stream_write(c->stream, request, sizeof *request + first);
	for (u32 i = 0; i < count && !error; i++)
		error = stream_write(c->stream, parts[i].data, parts[i].length);
	mutex_unlock(&c->send);
	while (!__atomic_load_n(&call.done, __ATOMIC_ACQUIRE))
		thread_sleep();
	return call.result;
}

struct whole {
	void *answer;
	u64 cap, length;
	u16 kind;
};

static int take_whole(void *argument, struct stream *s, const struct frame_header *header) {
	struct whole *w = argument;

	if (header->kind != w->kind || header->flags)
		return -EPROTO;
	w->length = MIN((u64)header->length, w->cap);
	int error = stream_read_full(s, w->answer, w->length);
	return error ? error : stream_skip(s, header->length - w->length);
}

i64 channel_call(struct channel *c, struct frame_header *request, u16 answer_kind, void *answer, u64 cap) {
	struct whole w = {answer, cap, 0, answer_kind};
	int error = channel_request(c, request, request->length, NULL, 0, take_whole, &w);

	return error ? error : (i64)w.length;
}

void channel_close(struct channel *c) {
	mutex_lock(&c->send);
	stream_close_write(c->stream);
	mutex_unlock(&c->send);
}
