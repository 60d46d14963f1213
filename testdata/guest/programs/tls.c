/*
 * tls get HOST:PORT [SERVERNAME]
 *
 * Connects to a host by name or address (IPv6 in brackets), whose certificate
 * must be for SERVERNAME or else for the host, sends an HTTP request for /,
 * half-closes, and prints the answer to the console. Logs the version of TLS.
 * Exit code 0, or 1 and a log record if something fails.
 *
 * tls serve ADDR:PORT
 *
 * A TLS echo server. Logs "listening on ADDR:PORT". Exits with 0 when asked to
 * stop.
 */
#include "../proto/tls.h"

#define TEXT(literal) {literal, sizeof literal - 1}

static const struct text none = TEXT(""), http = TEXT("http/1.1");

static int fail(const char *doing, i64 error) {
	log(LOG_ERROR, "%s: error %d", doing, -error);
	return 1;
}

static int send(struct stream *s, struct text t) {
	return stream_write(s, t.data, t.length);
}

static int get(const struct endpoint *where, struct text host, struct text server) {
	static const struct text head = TEXT("GET / HTTP/1.1\r\nConnection: close\r\nHost: "), end = TEXT("\r\n\r\n");
	static struct tls_session session;
	struct stream *s;
	u8 *data;
	i64 n;

	int error = tls_connect(&s, where, host, server, http, &session);
	if (error)
		return fail("connect", error);
	struct text alpn = {session.alpn, session.alpn_length};
	log(LOG_INFO, "connected by TLS version %x, protocol \"%t\"", (u64)session.version, &alpn);
	error = send(s, head);
	if (!error)
		error = send(s, server.length ? server : arg(2));
	if (!error)
		error = send(s, end);
	if (error)
		return fail("send", error);
	stream_close_write(s);
	while ((n = stream_peek(s, &data)) > 0) {
		console_write(data, n);
		stream_consume(s, n);
	}
	stream_close(s);
	return n ? fail("receive", n) : 0;
}

static int echo(struct stream *s, const struct endpoint *peer) {
	u8 *from, *to;

	(void)peer;
	for (;;) {
		i64 n = stream_peek(s, &from);
		if (n <= 0)
			return n;
		i64 room = stream_reserve(s, &to);
		if (room < 0)
			return room;
		n = MIN(n, room);
		memcpy(to, from, n);
		stream_commit(s, n);
		stream_consume(s, n);
		thread_yield();
	}
}

static int serve(const struct endpoint *where) {
	static struct tcp_listener listener;
	char name[ENDPOINT_TEXT];

	int error = tls_listen(&listener, where, none, TCP_RING_SIZE, TCP_RING_SIZE);
	if (!error)
		error = tcp_serve(&listener, echo);
	if (error)
		return fail("listen", error);
	struct text bound = {name, endpoint_format(name, &listener.bound)};
	log(LOG_INFO, "listening on %t", &bound);
	wait_for_stop();
	tcp_stop_listening(&listener);
	return 0;
}

int program_main(void) {
	struct endpoint where;
	struct text host = none;
	u32 n = boot->arg_count;

	if ((n == 3 || n == 4) && text_equal(arg(1), "get") && !endpoint_parse(arg(2), &where, &host))
		return get(&where, host, n == 4 ? arg(3) : none);
	if (n == 3 && text_equal(arg(1), "serve") && !endpoint_parse(arg(2), &where, NULL))
		return serve(&where);
	log(LOG_ERROR, "usage: tls get HOST:PORT [SERVERNAME] | tls serve ADDR:PORT");
	return 64;
}
