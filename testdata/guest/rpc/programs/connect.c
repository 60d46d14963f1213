/*
 * rpc-connect HOST PORT TEXT
 *
 * Connects, sends TEXT, logs what comes until the end. A connection that can't
 * be made has nothing to receive.
 */
#include "../kernel/rpc.h"

i32 program_main(void) {
	struct allocator_state before = allocator_state();
	struct text text = arg(3);
	struct pipe stream;
	u64 port, n, total = 0;
	char piece[400];

	if (arg_count != 4 || parse_number(arg(2), &port) || port > 65535) {
		log(LOG_ERROR, "wanted: HOST PORT TEXT");
		return 64;
	}
	tcp_connect(&stream, arg(1), port);
	n = stream_send(&stream, text.data, text.length);
	log(LOG_INFO, "sent %u of %u", n, text.length);
	while ((n = stream_receive(&stream, piece, sizeof piece))) {
		struct text t = {piece, n};
		log(LOG_INFO, "received: %t", &t);
		total += n;
	}
	stream_close(&stream);
	log(LOG_INFO, "received %u in all", total);
	return allocator_is_again(&before) ? 0 : 1;
}
