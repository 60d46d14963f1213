/* A server with one thread per CPU, as the real ones are. */
#include "rpc.h"

static struct pipe listener;
static struct spinlock accepting; /* one request at a time */
static void (*serve_one)(struct pipe *);
static u64 limit, tickets;

int parse_address(struct text s, u8 ip[4]) {
	const char *end = s.data + s.length;

	for (u32 i = 0; i < 4; i++) {
		const char *dot = i < 3 ? memory_find(s.data, end - s.data, '.') : end;
		u64 number;
		if (!dot || parse_number((struct text){s.data, dot - s.data}, &number) || number > 255)
			return -EINVAL;
		ip[i] = number;
		s.data = dot + 1;
	}
	return 0;
}

static void work(void) {
	struct pipe stream;

	while (__atomic_fetch_add(&tickets, 1, __ATOMIC_RELAXED) < limit) {
		wait_until(spin_try(&accepting));
		listener_accept(&listener, &stream);
		spin_unlock(&accepting);
		serve_one(&stream);
		stream_close(&stream);
	}
}

int serve(void (*connection)(struct pipe *)) {
	struct allocator_state before = allocator_state();
	u64 port;
	u8 ip[4];

	limit = ~0ul;
	if (parse_address(arg(1), ip) || parse_number(arg(2), &port) || (arg_count > 3 && parse_number(arg(3), &limit))) {
		log(LOG_ERROR, "wanted: ADDRESS PORT [CONNECTIONS]");
		return 64;
	}
	serve_one = connection;
	tcp_listen(&listener, ip, port);
	log(LOG_INFO, "serving on %u CPUs", (u64)cpu_count);
	run_everywhere(work);
	listener_close(&listener);
	if (!allocator_is_again(&before))
		return 1;
	log(LOG_INFO, "served %u connections; allocator as before, %u bytes used; %u signals", limit, before.used, signals);
	return 0;
}
