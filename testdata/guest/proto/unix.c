#include "unix.h"
#include "open.h"

enum { LISTENER_RING_SIZE = 4096 };

int unix_listen(struct tcp_listener *l, struct text path, u32 outgoing_size, u32 incoming_size) {
	struct {
		u32 backlog, reserved;
		u8 path[UNIX_PATH_MAX];
	} payload = {.backlog = l->backlog};
	struct stream *s;

	if (path.length > sizeof payload.path)
		return -EINVAL;
	memcpy(payload.path, path.data, path.length);
	int error = stream_open(&s, LISTENER_RING_SIZE, LISTENER_RING_SIZE);
	if (error)
		return error;
	l->outgoing_size = outgoing_size;
	l->incoming_size = incoming_size;
	l->bound = (struct endpoint){0};
	error = protocol_open(s, PROTOCOL_UNIX_LISTENER, &payload, 8 + path.length, NULL, 0);
	if (!error)
		error = channel_start(&l->channel, s);
	if (error)
		stream_close(s);
	return error;
}

int unix_connect(struct stream **s, struct text path) {
	if (path.length > UNIX_PATH_MAX)
		return -EINVAL;
	int error = stream_open(s, TCP_RING_SIZE, TCP_RING_SIZE);
	if (error)
		return error;
	error = protocol_open(*s, PROTOCOL_UNIX_CONNECTION, path.data, path.length, NULL, 0);
	if (error)
		stream_close(*s);
	return error;
}
