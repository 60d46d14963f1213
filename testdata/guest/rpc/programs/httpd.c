/*
 * rpc-httpd ADDRESS PORT [CONNECTIONS]
 *
 * Answers one request per connection, whatever it asks for, and closes it.
 */
#include "../kernel/rpc.h"

static void answer(struct pipe *stream) {
	static const char page[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nConnection: close\r\n\r\nhello, world";
	u8 request[1024];
	u64 n, have = 0;

	/* A request ends with an empty line. */
	do {
		n = stream_receive(stream, request + have, sizeof request - have);
		have += n;
	} while (n && have < sizeof request && !(have >= 4 && !memcmp(request + have - 4, "\r\n\r\n", 4)));
	if (n)
		stream_send(stream, page, sizeof page - 1);
}

i32 program_main(void) { return serve(answer); }
