/*
 * echo ADDR:PORT
 *
 * A TCP echo server: sends every connection what it receives from it, also after the peer's half-close. Logs "listening on ADDR:PORT". Stops
 * listening and exits with 0 when asked to stop.
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
	static struct tcp_listener listener;
	struct endpoint where;
	char name[ENDPOINT_TEXT];

	if (boot->arg_count != 2 || endpoint_parse(arg(1), &where, NULL)) {
		log(LOG_ERROR, "usage: echo ADDR:PORT");
		return 64;
	}
	int error = tcp_listen(&listener, &where, TCP_RING_SIZE, TCP_RING_SIZE);
	if (!error)
		error = tcp_serve(&listener, serve);
	if (error) {
		log(LOG_ERROR, "listen: error %d", -(i64)error);
		return 1;
	}
	struct text bound = {name, endpoint_format(name, &listener.bound)};
	log(LOG_INFO, "listening on %t", &bound);
	wait_for_stop();
	tcp_stop_listening(&listener);
	return 0;
}
