/*
 * The requests of files, listeners and streams. Note that files and streams
 * number theirs differently.
 */
#include "rpc.h"

enum { FILE_READ, FILE_WRITE, FILE_SEEK, FILE_CLOSE };
enum { FILE_BYTES, FILE_LENGTH, FILE_OFFSET, FILE_ACK };
enum { LISTENER_ACCEPT, LISTENER_CLOSE };
enum { LISTENER_PIPE, LISTENER_ACK };
enum { STREAM_SEND, STREAM_RECEIVE, STREAM_CLOSE };
enum { STREAM_LENGTH, STREAM_BYTES, STREAM_ACK };

static void ask(struct pipe *p, struct message *m, u8 answer) {
	pipe_request(p, m);
	u8 got = get_byte(m);
	if (got != answer)
		panic("called `Result::unwrap()`: answer %u, want %u", (u64)got, (u64)answer);
}

static u64 take_number(struct message *m) {
	u64 n = get_varint(m);
	message_end(m);
	return n;
}

static u64 request_bytes(struct pipe *p, u8 request, u8 answer, void *to, u64 n) {
	struct message m;

	message_new(&m, 16);
	put_varint(&m, request);
	put_varint(&m, n);
	ask(p, &m, answer);
	struct text t = get_bytes(&m);
	assert_that(t.length <= n, "no more than was asked for");
	memcpy(to, t.data, t.length);
	message_end(&m);
	return t.length;
}

static u64 give_bytes(struct pipe *p, u8 request, u8 answer, const void *from, u64 n) {
	struct message m;

	message_new(&m, n + 32);
	put_varint(&m, request);
	put_bytes(&m, from, n);
	ask(p, &m, answer);
	return take_number(&m);
}

static void close(struct pipe *p, u8 request, u8 answer) {
	struct message m;

	message_new(&m, 1);
	put_varint(&m, request);
	ask(p, &m, answer);
	message_end(&m);
	pipe_drop(p);
}

u64 file_read(struct pipe *p, void *to, u64 n) { return request_bytes(p, FILE_READ, FILE_BYTES, to, n); }
u64 file_write(struct pipe *p, const void *from, u64 n) { return give_bytes(p, FILE_WRITE, FILE_LENGTH, from, n); }
void file_close(struct pipe *p) { close(p, FILE_CLOSE, FILE_ACK); }

u64 file_seek(struct pipe *p, int whence, i64 offset) {
	struct message m;

	message_new(&m, 16);
	put_varint(&m, FILE_SEEK);
	put_varint(&m, whence);
	if (whence == SEEK_START)
		put_varint(&m, offset);
	else
		put_signed(&m, offset);
	ask(p, &m, FILE_OFFSET);
	return take_number(&m);
}

void listener_accept(struct pipe *listener, struct pipe *stream) {
	struct message m;

	message_new(&m, 1);
	put_varint(&m, LISTENER_ACCEPT);
	ask(listener, &m, LISTENER_PIPE);
	take_pipe(&m, stream);
}

void listener_close(struct pipe *p) { close(p, LISTENER_CLOSE, LISTENER_ACK); }

u64 stream_send(struct pipe *p, const void *from, u64 n) { return give_bytes(p, STREAM_SEND, STREAM_LENGTH, from, n); }
u64 stream_receive(struct pipe *p, void *to, u64 n) { return request_bytes(p, STREAM_RECEIVE, STREAM_BYTES, to, n); }
void stream_close(struct pipe *p) { close(p, STREAM_CLOSE, STREAM_ACK); }
