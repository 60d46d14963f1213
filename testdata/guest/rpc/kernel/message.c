/*
 * Messages in the postcard encoding; each lies in a block of the shared
 * allocator, as the real kernels' vectors do.
 */
#include "rpc.h"

void message_new(struct message *m, u64 room) {
	u8 *block = block_alloc(room);
	*m = (struct message){block, block, block + room, room};
}

void put_byte(struct message *m, u8 value) {
	assert_that(m->next < m->end, "room in a message");
	*m->next++ = value;
}

void put_varint(struct message *m, u64 value) {
	for (; value > 127; value >>= 7)
		put_byte(m, value | 128);
	put_byte(m, value);
}

void put_signed(struct message *m, i64 value) {
	put_varint(m, (u64)value << 1 ^ (u64)(value >> 63));
}

void put_bytes(struct message *m, const void *data, u64 n) {
	put_varint(m, n);
	assert_that(n <= (u64)(m->end - m->next), "room in a message");
	memcpy(m->next, data, n);
	m->next += n;
}

u8 get_byte(struct message *m) {
	assert_that(m->next < m->end, "a message goes on");
	return *m->next++;
}

u64 get_varint(struct message *m) {
	u64 value = 0;
	for (u32 shift = 0;; shift += 7) {
		u8 b = get_byte(m);
		assert_that(shift < 63 || b < 2, "a varint has 64 bits");
		value |= (u64)(b & 127) << shift;
		if (b < 128)
			return value;
	}
}

struct text get_bytes(struct message *m) {
	u64 n = get_varint(m);
	assert_that(n <= (u64)(m->end - m->next), "a message goes on");
	struct text t = {(const char *)m->next, n};
	m->next += n;
	return t;
}

void message_end(struct message *m) {
	assert_that(m->next == m->end, "a message ends");
	block_free(m->start, m->capacity);
}

void pipe_request(struct pipe *p, struct message *m) {
	u64 n = m->next - m->start;

	pipe_write(p, &n, sizeof n);
	pipe_write(p, m->start, n);
	block_free(m->start, m->capacity);
	pipe_read(p, &n, sizeof n);
	assert_that(n > 0, "a response is not empty");
	message_new(m, n);
	pipe_read(p, m->start, n);
}

void take_pipe(struct message *m, struct pipe *p) {
	u64 rx = get_varint(m), rx_length = get_varint(m), tx = get_varint(m), tx_length = get_varint(m);
	message_end(m);
	pipe_attach(p, rx, rx_length, tx, tx_length);
}
