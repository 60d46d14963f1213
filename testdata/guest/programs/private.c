/*
 * private PROTOCOL PAYLOAD TEXT…
 *
 * Opens a stream of a protocol that the embedding program has added, with this
 * payload, sends the texts one after the other, half-closes, and prints what
 * Opened brings and what comes back to the console. Exit code 0, or 1 and a log
 * record if something fails.
 */
#include "../proto/open.h"

static int fail(const char *doing, i64 error) {
	log(LOG_ERROR, "%s: error %d", doing, -error);
	return 1;
}

int program_main(void) {
	static u8 opened[4096];
	struct stream *s;
	u64 protocol;
	u8 *data;
	i64 n;

	if (boot->arg_count < 3 || parse_number(arg(1), &protocol) || protocol > 0xFFFF) {
		log(LOG_ERROR, "usage: private PROTOCOL PAYLOAD TEXT...");
		return 64;
	}
	struct text payload = arg(2);
	int error = stream_open(&s, 65536, 65536);
	if (error)
		return fail("stream", error);
	n = protocol_open_up_to(s, protocol, payload.data, payload.length, opened, sizeof opened);
	if (n < 0)
		return fail("open", n);
	console_write(opened, n);
	for (u32 i = 3; i < boot->arg_count; i++) {
		struct text t = arg(i);
		error = stream_write(s, t.data, t.length);
		if (error)
			return fail("send", error);
	}
	stream_close_write(s);
	while ((n = stream_peek(s, &data)) > 0) {
		console_write(data, n);
		stream_consume(s, n);
	}
	stream_close(s);
	return n ? fail("receive", n) : 0;
}
