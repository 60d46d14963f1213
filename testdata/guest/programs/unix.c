/*
 * unix listen PATH
 * unix connect PATH [TEXT…]
 *
 * listen: an echo server on a UNIX socket: sends every connection what it
 * receives from it. Logs "listening at PATH". Stops listening and exits with 0
 * when asked to stop. connect: sends the texts with a space between them,
 * half-closes, and prints what comes back to the console. Exit code 0, or 1 and
 * a log record if something fails.
 */
#include "../proto/unix.h"

static int fail(const char *doing, i64 error) {
	log(LOG_ERROR, "%s: error %d", doing, -error);
	return 1;
}

static int echo(struct stream *s, const struct endpoint *peer) {
	u8 *data;
	i64 n;

	(void)peer;
	while ((n = stream_peek(s, &data)) > 0) {
		int error = stream_write(s, data, n);
		if (error)
			return error;
		stream_consume(s, n);
	}
	return n;
}

static int listen(struct text path) {
	static struct tcp_listener listener;
	int error = unix_listen(&listener, path, TCP_RING_SIZE, TCP_RING_SIZE);

	if (!error)
		error = tcp_serve(&listener, echo);
	if (error)
		return fail("listen", error);
	log(LOG_INFO, "listening at %t", &path);
	wait_for_stop();
	tcp_stop_listening(&listener);
	return 0;
}

static int connect(struct text path) {
	struct stream *s;
	u8 *data;
	i64 n;
	int error = unix_connect(&s, path);

	if (error)
		return fail("connect", error);
	for (u32 i = 3; i < boot->arg_count && !error; i++) {
		struct text t = arg(i);
		if (i > 3)
			error = stream_write(s, " ", 1);
		if (!error)
			error = stream_write(s, t.data, t.length);
	}
	if (error)
		return fail("send", error);
	stream_close_write(s);
	while ((n = stream_peek(s, &data)) > 0) {
		console_write(data, n);
		stream_consume(s, n);
	}
	stream_close(s);
	return n ? fail("receive", n) : 0;
}

int program_main(void) {
	if (boot->arg_count == 3 && text_equal(arg(1), "listen"))
		return listen(arg(2));
	if (boot->arg_count >= 3 && text_equal(arg(1), "connect"))
		return connect(arg(2));
	log(LOG_ERROR, "usage: unix listen PATH | unix connect PATH [TEXT...]");
	return 64;
}
