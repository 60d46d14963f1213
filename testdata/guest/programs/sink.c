/*
 * sink ADDR:PORT [RING]
 *
 * Reads 8 bytes, a number with the lowest byte first, drops so many bytes by
 * moving the cursor only, and sends one byte back; and again. The incoming ring
 * has RING bytes, 64 KiB without it. Logs "listening on ADDR:PORT". Exits with
 * 0 when asked to stop.
 */
#include "../proto/tcp.h"

static int serve(struct stream *s, const struct endpoint *peer) {
	u64 left;
	u8 *data;

	(void)peer;
	for (;;) {
		int error = stream_read_full(s, &left, sizeof left);
		if (error)
			return error == -EIO ? 0 : error;
		while (left) {
			i64 n = stream_peek(s, &data);
			if (n <= 0)
				return n;
			n = MIN((u64)n, left);
			stream_consume(s, n);
			left -= n;
			thread_yield();
		}
		error = stream_write(s, "", 1);
		if (error)
			return error;
	}
}

int program_main(void) {
	return tcp_server(serve, 4096, 0);
}
