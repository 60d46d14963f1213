/*
 * source ADDR:PORT [RING]
 *
 * For each 8 bytes that a connection brings, a number with the lowest byte
 * first, it sends so many bytes: whatever the ring of RING bytes (64 KiB
 * without it) holds, by moving the cursor only, so that what is measured is not
 * this guest. Logs "listening on ADDR:PORT". Exits with 0 when asked to stop.
 */
#include "../proto/tcp.h"

static int serve(struct stream *s, const struct endpoint *peer) {
	u64 left;

	(void)peer;
	for (;;) {
		int error = stream_read_full(s, &left, sizeof left);
		if (error)
			return error == -EIO ? 0 : error;
		while (left) {
			i64 room = stream_wait_writable(s);
			if (room < 0)
				return room;
			room = MIN((u64)room, left);
			stream_commit(s, room);
			left -= room;
			thread_yield();
		}
	}
}

int program_main(void) {
	return tcp_server(serve, 0, 4096);
}
