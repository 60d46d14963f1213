/*
 * rpc-calls MODE …
 *
 * A kernel that asks for sockets and files by hypercalls. All of its arguments
 * are numbers. The modes:
 *   0                  logs its arguments
 *   1 IP PORT COUNT    every CPU accepts a connection and answers a request by
 *                      HTTP, COUNT in all (0: for ever)
 *   2 IP PORT          connects, sends a request, logs what comes
 *   3                  reads old; writes, reads and seeks in new
 *   4 IP PORT          records as a hostile guest would make them; a listener
 *                      at IP and PORT
 *   5 SIZE COUNT       writes COUNT pieces of SIZE bytes, 1 MiB at most, to
 *                      big; reads them
 *
 * IP is the address's four bytes as one number, the first byte the lowest.
 */
#include "../host/host.h"

enum { HTTP = 1, CONNECT, FILES, HOSTILE, PIECES };

static const char *const pieces[] = {"HTTP/1.1 200 OK\r\n", "Content-Type: text/plain\r\n", "Content-Length: ", "12", "\r\nConnection: close\r\n", "\r\n", "hello, world"};

static u64 listener, limit, tickets;

static struct tcp_info at_address(u64 ip, u64 port) {
	struct tcp_info r = {.port = port};
	memcpy(r.ip, &ip, sizeof r.ip);
	return r;
}

static u64 connect_or_listen(u64 call) {
	struct tcp_info r = at_address(number(1), number(2));

	tcp_call(call, &r);
	assert_that(r.id != 0, "an id");
	return r.id;
}

static u64 transfer(u64 call, u64 id, const void *data, u64 n) {
	struct tcp_info r = {.id = id, .buf = offset_of(data), .len = n};

	tcp_call(call, &r);
	assert_that(r.len <= n, "no more than was asked for");
	return r.len;
}

static void close_stream(u64 id) {
	struct tcp_info r = {.id = id};
	tcp_call(TCP_CLOSE, &r);
}

static void answer(u64 id) {
	u8 request[1024];
	u64 n, have = 0;

	do {
		n = transfer(TCP_RECV, id, request + have, sizeof request - have);
		have += n;
	} while (n && have < sizeof request && !(have >= 4 && !memcmp(request + have - 4, "\r\n\r\n", 4)));
	for (u64 i = 0; n && i < sizeof pieces / sizeof *pieces; i++)
		transfer(TCP_SEND, id, pieces[i], strlen(pieces[i]));
	close_stream(id);
}

static void serve_http(void) {
	while (!limit || __atomic_fetch_add(&tickets, 1, __ATOMIC_RELAXED) < limit) {
		struct tcp_info r = {.id = listener};

		tcp_call(TCP_ACCEPT, &r);
		answer(r.id);
	}
}

static i32 http(void) {
	limit = number(3);
	listener = connect_or_listen(TCP_LISTEN);
	log(LOG_INFO, "serving on %u CPUs", (u64)cpu_count);
	run_everywhere(serve_http);
	log(LOG_INFO, "served %u connections", limit);
	return 0;
}

static i32 connection(void) {
	static const char request[] = "GET / HTTP/1.1\r\n\r\n";
	u64 id = connect_or_listen(TCP_CONNECT), n, total = 0;
	char piece[400];

	n = transfer(TCP_SEND, id, request, sizeof request - 1);
	log(LOG_INFO, "sent %u of %u", n, (u64)sizeof request - 1);
	while ((n = transfer(TCP_RECV, id, piece, sizeof piece))) {
		struct text t = {piece, n};
		log(LOG_INFO, "received: %t", &t);
		total += n;
	}
	close_stream(id);
	log(LOG_INFO, "received %u in all", total);
	return 0;
}

static u64 open_file(const char *path, u8 write, u8 create) {
	struct file_info r = {.buf = offset_of(path), .len = strlen(path), .read = 1, .write = write, .create = create};

	file_call(FILE_OPEN, &r);
	log(LOG_INFO, "open %s: %s", path, r.id ? "ok" : "no");
	return r.id;
}

static u64 move(u64 call, u64 id, const void *data, u64 n) {
	struct file_info r = {.id = id, .buf = offset_of(data), .len = n};

	file_call(call, &r);
	return r.len;
}

static void seek(u64 id, i64 offset, i64 whence) {
	struct file_info r = {.id = id, .offset = offset, .whence = whence};

	file_call(FILE_SEEK, &r);
	log(LOG_INFO, "seek to %u", r.len);
}

static void read_file(u64 id) {
	char piece[100];
	struct text t = {piece, move(FILE_READ, id, piece, sizeof piece)};

	log(LOG_INFO, "read %u: %t", t.length, &t);
}

static void close_file(u64 id) {
	struct file_info r = {.id = id};
	file_call(FILE_CLOSE, &r);
}

static i32 files(void) {
	u64 id = open_file("/old", 0, 0);

	read_file(id);
	read_file(id);
	close_file(id);
	read_file(id);
	open_file("missing", 0, 0);
	open_file("../../etc/passwd", 0, 0);
	if (!(id = open_file("new", 1, 1)))
		return 0;
	log(LOG_INFO, "written %u", move(FILE_WRITE, id, "abcdef", 6));
	seek(id, 2, 0);
	read_file(id);
	seek(id, -3, 1);
	seek(id, -1, -1);
	read_file(id);
	seek(id, -100, 1);
	close_file(id);
	return 0;
}

static i32 pieces_of_file(void) {
	u64 size = number(1), total = size * number(2), at = 0, n;
	u8 *piece = block_alloc(1 << 20);
	u64 id = open_file("big", 1, 1);

	assert_that(size <= 1 << 20, "no larger piece");
	while (at < total && (n = move(FILE_WRITE, id, piece, size)))
		at += n;
	log(LOG_INFO, "written %u", at);
	seek(id, 0, 0);
	for (at = 0; at < total && (n = move(FILE_READ, id, piece, size));)
		at += n;
	log(LOG_INFO, "read %u", at);
	close_file(id);
	return 0;
}

/* What every CPU uses at once. */
static struct tcp_info shared;
static u8 overlapping[256];

static void hostile_cpu(void) {
	u64 end = ram_size();

	for (u64 i = 0; i < 25; i++) {
		u64 call = TCP_CONNECT + i % 11, id = listener + 1 + i;

		/*
		 * Two CPUs with one record, which changes while the monitor is at work,
		 * with done set by the guest.
		 */
		shared = (struct tcp_info){.id = id, .buf = offset_of(overlapping), .len = sizeof overlapping, .ip = {127, 0, 0, 1}, .port = 1, .done = 1};
		host_call(call, offset_of(&shared));
		__atomic_store_n(&shared.buf, end, __ATOMIC_RELAXED);
		__atomic_store_n(&shared.len, ~0ul, __ATOMIC_RELAXED);
		/* Records that overlap each other and their own buffers. */
		for (u64 at = 0; at < 64; at += 8) {
			struct tcp_info *r = (struct tcp_info *)(overlapping + at);
			r->id = id, r->buf = offset_of(r), r->len = 64;
			host_call(call, offset_of(r));
		}
		/* Buffers and records at the end of RAM, beyond it, and not aligned. */
		overlapping[30] = 0;
		((struct file_info *)overlapping)->buf = end - 8;
		((struct file_info *)overlapping)->len = 9 + (i % 2 ? 0 : ~0ul - 20);
		host_call(FILE_OPEN + i % 5, offset_of(overlapping));
		host_call(call, end - 32);
		host_call(call, end - 8);
		host_call(call, end);
		host_call(call, ~0ul - 7);
		host_call(call, offset_of(overlapping) + 1);
	}
}

/*
 * Uses up the ids that a hostile record may hold by chance, as another record's
 * length: one of them would be the listener's, and the guest would have
 * accepted or closed what it serves afterwards.
 */
static void use_up_ids(void) {
	struct tcp_info r;

	do {
		r = (struct tcp_info){.ip = {127, 0, 0, 1}, .port = 1};
		tcp_call(TCP_CONNECT, &r);
		close_stream(r.id);
	} while (r.id <= sizeof overlapping);
}

static i32 hostile(void) {
	i64 result = host_call(TCP_LISTEN, ram_size());

	use_up_ids();
	listener = connect_or_listen(TCP_LISTEN);
	run_everywhere(hostile_cpu);
	log(LOG_INFO, "beyond RAM: %u", (u64)-result);
	/* The monitor still serves. */
	struct tcp_info r = {.id = listener};
	tcp_call(TCP_ACCEPT, &r);
	answer(r.id);
	return 0;
}

i32 program_main(void) {
	switch (number(0)) {
	case HTTP:
		return http();
	case CONNECT:
		return connection();
	case FILES:
		return files();
	case HOSTILE:
		return hostile();
	case PIECES:
		return pieces_of_file();
	}
	for (u64 i = 0; i < number_count; i++)
		log(LOG_INFO, "argument %u: %u", i, number(i));
	return number(1);
}
