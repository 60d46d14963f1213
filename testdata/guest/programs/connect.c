/*
 * connect HOST:PORT [TEXT…]
 *
 * Connects to a host by name or address (IPv6 in brackets), sends the texts
 * with a space between them, half-closes, and prints what comes back to the
 * console. Exit code 0, or 1 and a log record if something fails.
 */
#include "../proto/tcp.h"

static int fail(const char *doing, i64 error) {
	log(LOG_ERROR, "%s: error %d", doing, -error);
	return 1;
}

int program_main(void) {
	struct endpoint where;
	struct text host = {"", 0};
	struct stream *s;
	u8 *data;
	i64 n;

	if (boot->arg_count < 2 || endpoint_parse(arg(1), &where, &host)) {
		log(LOG_ERROR, "usage: connect HOST:PORT [TEXT...]");
		return 64;
	}
	int error = tcp_connect(&s, &where, host);
	if (error)
		return fail("connect", error);
	for (u32 i = 2; i < boot->arg_count && !error; i++) {
		struct text t = arg(i);
		if (i > 2)
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
