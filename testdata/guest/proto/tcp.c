#include "tcp.h"
#include "open.h"

enum { KIND_ACCEPT_CONNECTION = 0x20, KIND_INCOMING_CONNECTION };
enum { LISTENER_RING_SIZE = 4096, NAME_MAX = 253 };
enum { OPTIONS_FOLLOW = 1 }; /* in an endpoint's second byte */

int tcp_listen_by(struct tcp_listener *l, u16 protocol, const void *payload, u32 length, u32 outgoing_size, u32 incoming_size) {
	struct stream *s;
	int error = stream_open(&s, LISTENER_RING_SIZE, LISTENER_RING_SIZE);

	if (error)
		return error;
	l->outgoing_size = outgoing_size;
	l->incoming_size = incoming_size;
	error = protocol_open(s, protocol, payload, length, &l->bound, sizeof l->bound);
	if (!error)
		error = channel_start(&l->channel, s);
	if (error)
		stream_close(s);
	return error;
}

int tcp_listen(struct tcp_listener *l, const struct endpoint *where, u32 outgoing_size, u32 incoming_size) {
	struct {
		struct endpoint endpoint;
		u32 backlog;
		struct tcp_options options;
	} payload = {*where, l->backlog, l->options};

	return tcp_listen_by(l, PROTOCOL_TCP_LISTENER, &payload, sizeof payload, outgoing_size, incoming_size);
}

int tcp_accept(struct tcp_listener *l, struct stream **s, struct tcp_ends *ends) {
	struct {
		struct frame_header header;
		u64 pipe;
	} request = {.header = {8, KIND_ACCEPT_CONNECTION, 0, 0}};
	struct {
		u32 status, reserved;
		u64 pipe;
		struct endpoint peer, local;
	} answer;
	int error = stream_open(s, l->outgoing_size, l->incoming_size);

	if (error)
		return error;
	request.pipe = (*s)->id;
	i64 n = channel_call(&l->channel, &request.header, KIND_INCOMING_CONNECTION, &answer, sizeof answer);
	if (n >= 4 && answer.status)
		n = -(i64)answer.status;
	else if (n >= 0 && n < (i64)sizeof answer)
		n = -EPROTO;
	if (n < 0) {
		stream_close(*s);
		return n;
	}
	if (ends)
		*ends = (struct tcp_ends){answer.local, answer.peer};
	return 0;
}

void tcp_stop_listening(struct tcp_listener *l) {
	channel_close(&l->channel);
}

int tcp_connect(struct stream **s, const struct endpoint *e, struct text host) {
	return tcp_connect_with(s, e, host, (struct tcp_options){0, 0}, NULL);
}

int tcp_connect_with(struct stream **s, const struct endpoint *e, struct text host, struct tcp_options options, struct tcp_ends *ends) {
	struct {
		struct endpoint endpoint;
		struct tcp_options options;
		char host[NAME_MAX];
	} payload = {.endpoint = *e, .options = options};
	struct tcp_ends opened;

	if (host.length > sizeof payload.host)
		return -EINVAL;
	int error = stream_open(s, TCP_RING_SIZE, TCP_RING_SIZE);
	if (error)
		return error;
	payload.endpoint.reserved = OPTIONS_FOLLOW;
	memcpy(payload.host, host.data, host.length);
	u32 length = sizeof payload.endpoint + sizeof payload.options + host.length;
	error = protocol_open(*s, PROTOCOL_TCP_CONNECTION, &payload, length, &opened, sizeof opened);
	if (error)
		stream_close(*s);
	else if (ends)
		*ends = opened;
	return error;
}
