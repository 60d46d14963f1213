/* A program that serves TCP and nothing else. */
#include "tcp.h"

int tcp_server(int (*serve)(struct stream *s, const struct endpoint *peer), u32 outgoing_size, u32 incoming_size) {
	static struct tcp_listener listener;
	struct endpoint where;
	u64 ring = TCP_RING_SIZE;
	char name[ENDPOINT_TEXT];
	u32 ring_arguments = !outgoing_size || !incoming_size;

	if (boot->arg_count < 2 || boot->arg_count > 2 + ring_arguments || endpoint_parse(arg(1), &where, NULL) ||
	    (boot->arg_count == 3 && (parse_number(arg(2), &ring) || ring > ~0u))) {
		struct text program = arg(0);
		log(LOG_ERROR, "usage: %t ADDR:PORT%s", &program, ring_arguments ? " [RING]" : "");
		return 64;
	}
	int error = tcp_listen(&listener, &where, outgoing_size ? outgoing_size : ring, incoming_size ? incoming_size : ring);
	if (!error)
		error = tcp_serve(&listener, serve);
	if (error) {
		log(LOG_ERROR, "listen: error %d", -(i64)error);
		return 1;
	}
	struct text bound = {name, endpoint_format(name, &listener.bound)};
	log(LOG_INFO, "listening on %t", &bound);
	wait_for_stop();
	tcp_stop_listening(&listener);
	return 0;
}
