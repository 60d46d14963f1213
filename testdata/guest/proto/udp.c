#include "udp.h"
#include "open.h"

enum { KIND_SEND_DATAGRAM = 0x30, KIND_DATAGRAM_ERROR = 0x32, KIND_SEND_DATAGRAM_FROM, KIND_RECEIVED_DATAGRAM_AT };

/*
 * In the reserved byte of the local endpoint: the guest wants
 * KIND_RECEIVED_DATAGRAM_AT.
 */
enum { ADDRESSED = 1 };

static int udp_open(struct udp_socket *s, struct endpoint ends[2], u32 ring_size) {
	struct endpoint bound[2];
	int error = stream_open(&s->stream, ring_size, ring_size);

	if (error)
		return error;
	ends[0].reserved = ADDRESSED;
	error = protocol_open(s->stream, PROTOCOL_UDP, ends, 2 * sizeof *ends, bound, sizeof bound);
	if (error) {
		stream_close(s->stream);
		return error;
	}
	s->local = bound[0];
	s->peer = bound[1];
	return 0;
}

int udp_bind_with(struct udp_socket *s, const struct endpoint *local, u32 ring_size) {
	struct endpoint ends[2] = {*local};
	return udp_open(s, ends, ring_size);
}

int udp_bind(struct udp_socket *s, const struct endpoint *local) {
	return udp_bind_with(s, local, UDP_RING_SIZE);
}

int udp_connect(struct udp_socket *s, const struct endpoint *peer) {
	struct endpoint ends[2] = {{0}, *peer};
	return udp_open(s, ends, UDP_RING_SIZE);
}

int udp_send(struct udp_socket *s, u64 request, const struct endpoint *to, const void *data, u64 n) {
	struct {
		struct frame_header header;
		struct endpoint to;
	} frame = {.header = {sizeof frame.to + n, KIND_SEND_DATAGRAM, 0, request}};

	if (n > UDP_DATAGRAM_MAX)
		return -EINVAL;
	if (to)
		frame.to = *to;
	int error = stream_write(s->stream, &frame, sizeof frame);
	return error ? error : stream_write(s->stream, data, n);
}

int udp_send_from(struct udp_socket *s, u64 request, const struct endpoint *to, const struct endpoint *from, const void *data, u64 n) {
	struct {
		struct frame_header header;
		struct endpoint to, from;
	} frame = {.header = {sizeof frame.to + sizeof frame.from + n, KIND_SEND_DATAGRAM_FROM, 0, request}, *to, *from};

	if (n > UDP_DATAGRAM_MAX)
		return -EINVAL;
	int error = stream_write(s->stream, &frame, sizeof frame);
	return error ? error : stream_write(s->stream, data, n);
}

/* The payload of a DatagramError. */
static i64 receive_error(struct udp_socket *s, struct udp_datagram *d) {
	u32 status[2];
	int error = stream_read_full(s->stream, status, sizeof status);

	if (!error)
		error = stream_read_full(s->stream, &d->from, sizeof d->from);
	return error ? error : -(i64)status[0];
}

i64 udp_receive(struct udp_socket *s, struct udp_datagram *d, void *to, u64 cap) {
	struct frame_header h;
	struct {
		struct endpoint from;
		u32 size, dropped;
		struct endpoint local;
	} fixed;

	if (stream_read_full(s->stream, &h, sizeof h))
		return -EPIPE;
	d->request = h.request_id;
	if (h.kind == KIND_DATAGRAM_ERROR && h.length == 8 + sizeof d->from)
		return receive_error(s, d);
	if (h.kind != KIND_RECEIVED_DATAGRAM_AT || h.length < sizeof fixed)
		return -EPIPE;
	int error = stream_read_full(s->stream, &fixed, sizeof fixed);
	u64 length = h.length - sizeof fixed, n = MIN(length, cap);
	if (!error)
		error = stream_read_full(s->stream, to, n);
	if (!error)
		error = stream_skip(s->stream, length - n);
	if (error)
		return -EPIPE;
	d->from = fixed.from;
	d->local = fixed.local;
	d->size = fixed.size;
	d->dropped = fixed.dropped;
	return n;
}

void udp_close(struct udp_socket *s) {
	stream_close(s->stream);
}
