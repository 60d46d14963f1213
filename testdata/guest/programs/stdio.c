/*
 * stdio [wait | second | crash]
 *
 * Sends the standard input back to the standard output in capital letters, as
 * it comes, until its end, or until a byte 4: Ctrl-D of a terminal in raw mode.
 * Then says how many bytes there were. Exit code 0, or 1 and a log record if
 * something fails. With wait it stays until it is asked to stop, with second it
 * opens the stream twice and logs what happened, with crash it crashes at the
 * end.
 */
#include "../proto/stdio.h"

enum { CTRL_D = 4 };

static int fail(const char *doing, i64 error) {
	log(LOG_ERROR, "%s: error %d", doing, -error);
	return 1;
}

/* How many bytes there were, or an error. */
static i64 capitals(struct stream *s) {
	static u8 line[4096];
	i64 total = 0, n;
	u8 *data;

	while ((n = stream_peek(s, &data)) > 0) {
		n = MIN(n, (i64)sizeof line);
		u64 length = 0;
		while (length < (u64)n && data[length] != CTRL_D) {
			u8 c = data[length];
			line[length++] = c >= 'a' && c <= 'z' ? c - 32 : c;
		}
		stream_consume(s, n);
		total += length;
		int error = stream_write(s, line, length);
		if (error)
			return error;
		if (length < (u64)n)
			break;
	}
	return n < 0 ? n : total;
}

static void second(struct stream **s) {
	struct stream *other;
	int error = stdio_open(&other);

	log(LOG_INFO, "the second: error %d", -(i64)error);
	stream_close(*s);
	error = stdio_open(s);
	log(LOG_INFO, "after the first: error %d", -(i64)error);
}

int program_main(void) {
	struct text how = arg(1);
	struct stream *s;
	char said[64];
	int error = stdio_open(&s);

	if (error)
		return fail("stdio", error);
	if (TEXT_IS(how, "second"))
		second(&s);
	log(LOG_INFO, "stdio open");
	i64 n = capitals(s);
	if (n < 0)
		return fail("stdio", n);
	if (TEXT_IS(how, "crash"))
		panic("as asked");
	if (TEXT_IS(how, "wait")) {
		log(LOG_INFO, "waiting");
		wait_for_stop();
	}
	error = stream_write(s, said, format(said, sizeof said, "%d bytes\n", n));
	if (error)
		return fail("stdio", error);
	stream_close(s);
	return 0;
}
