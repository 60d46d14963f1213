/*
 * rpc-httpd ADDRESS PORT [CONNECTIONS]
 *
 * Answers one request per connection, whatever it asks for, and closes it.
 */
#include "../kernel/rpc.h"

/*
 * One request to the monitor for each piece, as a real one's formatter makes
 * them.
 */
static const char *const pieces[] = {"HTTP/1.1 200 OK\r\n", "Content-Type: text/plain\r\n", "Content-Length: ", "12", "\r\nConnection: close\r\n", "\r\n", "hello, world"};

static void answer(struct pipe *stream) {
	u8 request[1024];
	u64 n, have = 0;

	/* A request ends with an empty line. */
	do {
		n = stream_receive(stream, request + have, sizeof request - have);
		have += n;
	} while (n && have < sizeof request && !(have >= 4 && !memcmp(request + have - 4, "\r\n\r\n", 4)));
	for (u64 i = 0; n && i < sizeof pieces / sizeof *pieces; i++)
		stream_send(stream, pieces[i], strlen(pieces[i]));
}

i32 program_main(void) { return serve(answer); }
