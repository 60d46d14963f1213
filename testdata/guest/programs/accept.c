/*
 * accept ADDR:PORT
 *
 * Sends each connection one byte and closes it. Logs "listening on ADDR:PORT".
 * Exits with 0 when asked to stop.
 */
#include "../proto/tcp.h"

static int serve(struct stream *s, const struct endpoint *peer) {
	(void)peer;
	return stream_write(s, "", 1);
}

int program_main(void) {
	return tcp_server(serve, 4096, 4096);
}
