/*
 * rpc-echo ADDRESS PORT [CONNECTIONS]
 *
 * Sends back what it receives.
 */
#include "../kernel/rpc.h"

enum { PIECE = 64 << 10 };

static void echo(struct pipe *stream) {
	u8 *piece = block_alloc(PIECE);
	u64 n;

	while ((n = stream_receive(stream, piece, PIECE)))
		for (u64 sent = 0; sent < n;)
			sent += stream_send(stream, piece + sent, n - sent);
	block_free(piece, PIECE);
}

i32 program_main(void) { return serve(echo); }
