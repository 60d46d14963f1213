/*
 * udp echo ADDR:PORT
 *
 * Sends every datagram back to where it came from, from the address that it
 * came to. Logs "bound to ADDR:PORT", and each error of a datagram that it
 * sent. Exits with 0 when asked to stop.
 *
 * udp late ADDR:PORT RING
 *
 * Binds with rings of this size, and logs "bound to ADDR:PORT". Doesn't receive
 * before it is asked to stop; then it does, up to the first empty datagram, and
 * logs "received N, N of SIZE bytes cut to LENGTH, N dropped".
 *
 * udp send ADDR:PORT TEXT…
 *
 * Sends each text as a datagram to this peer, one after the answer to the
 * other, and prints the answers to the console, a line each. Exit code 0, or 1
 * and a log record if something fails.
 */
#include "../proto/udp.h"

static struct udp_socket s;
static u8 data[UDP_DATAGRAM_MAX];

static int fail(const char *doing, i64 error) {
	log(LOG_ERROR, "%s: error %d", doing, -error);
	return 1;
}

static void echo(void *unused) {
	struct udp_datagram d;
	char to[ENDPOINT_TEXT];

	(void)unused;
	for (;;) {
		i64 n = udp_receive(&s, &d, data, sizeof data);
		if (n == -EPIPE)
			return;
		if (n < 0) {
			struct text name = {to, endpoint_format(to, &d.from)};
			log(LOG_WARNING, "to %t: error %d", &name, -n);
		} else if (udp_send_from(&s, 1, &d.from, &d.local, data, n))
			return;
		thread_yield();
	}
}

static int bind(const struct endpoint *where, u32 ring) {
	char name[ENDPOINT_TEXT];
	int error = udp_bind_with(&s, where, ring);

	if (error)
		return fail("bind", error);
	struct text bound = {name, endpoint_format(name, &s.local)};
	log(LOG_INFO, "bound to %t", &bound);
	return 0;
}

static int receive_late(const struct endpoint *where, u32 ring) {
	u64 received = 0, cut = 0, size = 0, length = 0;
	struct udp_datagram d;

	if (bind(where, ring))
		return 1;
	wait_for_stop();
	for (;;) {
		i64 n = udp_receive(&s, &d, data, sizeof data);
		if (n < 0)
			return fail("receive", n);
		if (!d.size)
			break;
		received++;
		if (n < d.size) {
			cut++;
			size = d.size;
			length = n;
		}
	}
	log(LOG_INFO, "received %u, %u of %u bytes cut to %u, %u dropped", received, cut, size, length, (u64)d.dropped);
	return 0;
}

static int serve(const struct endpoint *where) {
	if (bind(where, UDP_RING_SIZE))
		return 1;
	int error = thread_start(0, echo, NULL);
	if (error)
		return fail("thread", error);
	wait_for_stop();
	return 0;
}

static int send(const struct endpoint *peer) {
	struct udp_datagram d;
	int error = udp_connect(&s, peer);

	if (error)
		return fail("connect", error);
	for (u32 i = 3; i < boot->arg_count; i++) {
		struct text t = arg(i);
		error = udp_send(&s, i, NULL, t.data, t.length);
		if (error)
			return fail("send", error);
		i64 n = udp_receive(&s, &d, data, sizeof data);
		if (n < 0)
			return fail("receive", n);
		console_write(data, n);
		console_write("\n", 1);
	}
	udp_close(&s);
	return 0;
}

int program_main(void) {
	struct endpoint where;
	u64 ring;

	if (boot->arg_count >= 3 && !endpoint_parse(arg(2), &where, NULL)) {
		if (text_equal(arg(1), "echo") && boot->arg_count == 3)
			return serve(&where);
		if (text_equal(arg(1), "late") && boot->arg_count == 4 && !parse_number(arg(3), &ring))
			return receive_late(&where, ring);
		if (text_equal(arg(1), "send"))
			return send(&where);
	}
	log(LOG_ERROR, "usage: udp echo ADDR:PORT | udp late ADDR:PORT RING | udp send ADDR:PORT TEXT...");
	return 64;
}
