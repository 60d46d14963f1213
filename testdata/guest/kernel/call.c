/*
 * Requests and answers of many threads over one stream. The request id is the address of the call that waits; a dispatcher thread deals the answers.
 */
#include "internal.h"

struct call {
	struct call *next, **previous;
	struct thread *thread;
	void *answer;
	u64 cap;
	i64 result;
	u16 answer_kind;
	u32 done;
};

static void finish(struct call *call, i64 result) {
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
	if (h.kind != call->answer_kind || h.flags)
		return -EPROTO;
	u64 n = MIN((u64)h.length, call->cap);
	error = stream_read_full(c->stream, call->answer, n);
	if (!error)
		error = stream_skip(c->stream, h.length - n);
	if (error)
		return error;
	spin_lock(&c->lock);
	unlink_call(call);
	spin_unlock(&c->lock);
	finish(call, n);
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

i64 channel_call(struct channel *c, struct frame_header *request, u16 answer_kind, void *answer, u64 cap) {
	struct call call = {.thread = thread_current(), .answer = answer, .cap = cap, .answer_kind = answer_kind};

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
	/* After an error the dispatcher ends too, and fails this call with the others. */
	stream_write(c->stream, request, sizeof *request + request->length);
	mutex_unlock(&c->send);
	while (!__atomic_load_n(&call.done, __ATOMIC_ACQUIRE))
		thread_sleep();
	return call.result;
}

void channel_close(struct channel *c) {
	mutex_lock(&c->send);
	stream_close_write(c->stream);
	mutex_unlock(&c->send);
}
