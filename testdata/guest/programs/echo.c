/*
 * echo ADDR:PORT [RING]
 *
 * A TCP echo server: sends every connection what it receives from it, also
 * after the peer's half-close. Its rings have RING bytes, 64 KiB without it.
 * Logs "listening on ADDR:PORT". Stops listening and exits with 0 when asked to
 * stop.
 */
#include "../proto/tcp.h"

static int serve(struct stream *s, const struct endpoint *peer) {
	u8 *from, *to;

	(void)peer;
	for (;;) {
		i64 n = stream_peek(s, &from);
		if (n <= 0)
			return n;
		i64 room = stream_reserve(s, &to);
		if (room < 0)
			return room;
		n = MIN(n, room);
		memcpy(to, from, n);
		stream_commit(s, n);
		stream_consume(s, n);
		thread_yield();
	}
}

int program_main(void) {
	return tcp_server(serve, 0, 0);
}
