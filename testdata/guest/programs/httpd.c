/*
 * httpd [ADDR:PORT]
 *
 * An HTTP/1.1 server, at 127.0.0.1:0 unless told otherwise; IPv6 addresses in
 * brackets. Logs "listening on http://ADDR:PORT/". Stops listening and exits
 * with 0 when asked to stop.
 *
 *   GET /          a page that says what it runs on
 *   GET /bytes/N   N bytes; byte i is (j + 7 * (j / 256)) mod 256, where j is
 *                  i mod 4096
 *   POST /echo     the body, as it comes
 *   POST /sha256   the SHA-256 of the body in hexadecimal and a newline;
 *                  bodies of up to 16 MiB
 *
 * HEAD goes where GET goes. A body needs a Content-Length. A connection is a
 * thread, so thousands at once cost stacks and rings.
 */
#include "../proto/tcp.h"
#include "sha256.h"

enum { LINE_MAX = 2048, HEADERS_MAX = 100, SHA256_MAX = 16 << 20, PATTERN = 4096, SLICE = 4096, PAGE_CAP = 8192 };
enum { E2BIG = 7 };

extern const u8 pattern[PATTERN];

static u64 start_tsc;
static u64 requests, connections; /* atomic */

enum method { GET, HEAD, POST, OTHER };
enum route { ROOT, BYTES, ECHO, SHA256, NOWHERE };

struct request {
	enum method method;
	enum route route;
	u64 number; /* of BYTES */
	u64 body;   /* Content-Length */
	int has_body, chunked, keep_alive, expects_continue, has_host, http10;
};

struct connection {
	struct stream *stream;
	/*
	 * A piece of the ring: lines up to at have been read, what lies from at to
	 * end hasn't.
	 */
	u8 *start, *at, *end;
	char line[LINE_MAX];
};

/* --- reading --- */

/* Gives what has been read back to the ring. Afterwards no line is valid. */
static void release_lines(struct connection *c) {
	stream_consume(c->stream, c->at - c->start);
	c->start = c->at = c->end = NULL;
}

/* 1, or what stream_peek says. */
static i64 next_piece(struct connection *c) {
	release_lines(c);
	i64 n = stream_peek(c->stream, &c->start);
	c->at = c->start;
	c->end = c->start + MAX(n, 0);
	return n > 0 ? 1 : n;
}

static void strip_return(struct text *line) {
	if (line->length && line->data[line->length - 1] == '\r')
		line->length--;
}

/* A line that the ring doesn't hold in one piece, put together in c->line. */
static int read_broken_line(struct connection *c, struct text *line) {
	u64 used = 0;

	for (;;) {
		const u8 *newline = memory_find(c->at, c->end - c->at, '\n');
		u64 part = newline ? newline - c->at : c->end - c->at;
		if (used + part > LINE_MAX)
			return -E2BIG;
		memcpy(c->line + used, c->at, part);
		used += part;
		c->at += part;
		if (newline) {
			c->at++;
			*line = (struct text){c->line, used};
			strip_return(line);
			return 1;
		}
		i64 n = next_piece(c);
		if (n != 1)
			return n;
	}
}

/*
 * Reads a line, in place where the ring holds it in one piece; it is valid
 * until the next one is read. 1, or 0 at the end of the stream, -E2BIG for a
 * line longer than LINE_MAX.
 */
static int read_line(struct connection *c, struct text *line) {
	if (c->at == c->end) {
		i64 n = next_piece(c);
		if (n != 1)
			return n;
	}
	const u8 *newline = memory_find(c->at, MIN(c->end - c->at, LINE_MAX), '\n');
	if (!newline)
		return read_broken_line(c, line);
	*line = (struct text){(char *)c->at, newline - c->at};
	c->at += line->length + 1;
	strip_return(line);
	return 1;
}

/*
 * Cuts s after the first such byte and gives the part before it: all of s if
 * there is none.
 */
static struct text cut(struct text *s, u8 byte) {
	const char *at = memory_find(s->data, s->length, byte);
	struct text before = *s;

	if (!at) {
		*s = (struct text){s->data + s->length, 0};
		return before;
	}
	before.length = at - s->data;
	*s = (struct text){at + 1, s->length - before.length - 1};
	return before;
}

/* b in small letters. */
static int equal_fold(struct text a, const char *b, u64 length) {
	if (a.length != length)
		return 0;
	for (u64 i = 0; i < length; i++) {
		u8 byte = a.data[i];
		if ((u8)(byte - 'A') < 26)
			byte |= 0x20;
		if (byte != (u8)b[i])
			return 0;
	}
	return 1;
}
#define EQUAL_FOLD(a, b) equal_fold(a, b, sizeof b - 1)

#define STARTS_WITH(s, literal) ((s).length >= sizeof literal - 1 && !memcmp((s).data, literal, sizeof literal - 1))

static struct text after(struct text s, u64 n) {
	return (struct text){s.data + n, s.length - n};
}

static enum route parse_target(struct text t, u64 *number) {
	if (STARTS_WITH(t, "http://")) {
		t = after(t, 7);
		cut(&t, '/');
		t = (struct text){t.data - 1, t.length + 1};
	}
	t = cut(&t, '?');
	if (STARTS_WITH(t, "/bytes/") && !parse_number(after(t, 7), number))
		return BYTES;
	return TEXT_IS(t, "/") ? ROOT : TEXT_IS(t, "/echo") ? ECHO : TEXT_IS(t, "/sha256") ? SHA256 : NOWHERE;
}

/* 0, or the status to answer. */
static int parse_request_line(struct request *r, struct text line) {
	struct text method = cut(&line, ' '), target = cut(&line, ' ');

	if (!method.length || !target.length || line.length != 8 || !STARTS_WITH(line, "HTTP/"))
		return 400;
	if (!STARTS_WITH(line, "HTTP/1."))
		return 505;
	r->http10 = line.data[7] == '0';
	r->keep_alive = !r->http10;
	r->method = TEXT_IS(method, "GET") ? GET : TEXT_IS(method, "POST") ? POST : TEXT_IS(method, "HEAD") ? HEAD : OTHER;
	r->route = parse_target(target, &r->number);
	return 0;
}

static struct text trim(struct text s) {
	while (s.length && (*s.data == ' ' || *s.data == '\t'))
		s = after(s, 1);
	while (s.length && (s.data[s.length - 1] == ' ' || s.data[s.length - 1] == '\t'))
		s.length--;
	return s;
}

static int parse_header(struct request *r, struct text line) {
	struct text name = cut(&line, ':'), value;

	if (!name.length || line.data == name.data + name.length)
		return 400;
	switch (name.length) {
	case 4:
		r->has_host |= TEXT_IS(name, "Host") || EQUAL_FOLD(name, "host");
		break;
	case 6:
		if (EQUAL_FOLD(name, "expect"))
			r->expects_continue = EQUAL_FOLD(trim(line), "100-continue");
		break;
	case 10:
		if (!EQUAL_FOLD(name, "connection"))
			break;
		value = trim(line);
		if (EQUAL_FOLD(value, "close"))
			r->keep_alive = 0;
		else if (EQUAL_FOLD(value, "keep-alive"))
			r->keep_alive = 1;
		break;
	case 14: {
		u64 before = r->body;
		if (!TEXT_IS(name, "Content-Length") && !EQUAL_FOLD(name, "content-length"))
			break;
		if (parse_number(trim(line), &r->body) || (r->has_body && r->body != before))
			return 400;
		r->has_body = 1;
		break;
	}
	case 17:
		r->chunked |= EQUAL_FOLD(name, "transfer-encoding");
		break;
	}
	return 0;
}

/*
 * 0 for a request, -1 at the end of the stream, or the status to answer before
 * the connection is closed.
 */
static int read_request(struct connection *c, struct request *r) {
	struct text line;
	int n, status;

	*r = (struct request){.method = OTHER, .route = NOWHERE};
	do {
		n = read_line(c, &line);
		if (n <= 0)
			return n == -E2BIG ? 414 : -1;
	} while (!line.length);
	status = parse_request_line(r, line);
	if (status)
		return status;
	for (u32 headers = 0; headers <= HEADERS_MAX; headers++) {
		n = read_line(c, &line);
		if (n <= 0)
			return n == -E2BIG ? 431 : -1;
		if (!line.length) {
			release_lines(c);
			if (r->chunked)
				return r->has_body ? 400 : 501;
			return r->has_host || r->http10 ? 0 : 400;
		}
		status = parse_header(r, line);
		if (status)
			return status;
	}
	return 431;
}

/* --- answering --- */

static const char *reason(int status) {
	switch (status) {
	case 200: return "OK";
	case 400: return "Bad Request";
	case 404: return "Not Found";
	case 405: return "Method Not Allowed";
	case 411: return "Length Required";
	case 413: return "Content Too Large";
	case 414: return "URI Too Long";
	case 431: return "Request Header Fields Too Large";
	case 501: return "Not Implemented";
	case 503: return "Service Unavailable";
	default: return "HTTP Version Not Supported";
	}
}

enum { HEADER_CAP = 512 };

static const char html[] = "text/html; charset=utf-8", octets[] = "application/octet-stream", plain[] = "text/plain";

static u64 format_header(char *to, const struct request *r, int status, const char *type, u64 length) {
	static const char usual[] = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: ";
	const char *connection = !r->keep_alive ? "Connection: close\r\n" : r->http10 ? "Connection: keep-alive\r\n" : "";
	const char *allow = status != 405 ? "" : r->route == ROOT || r->route == BYTES ? "Allow: GET, HEAD\r\n" : "Allow: POST\r\n";

	if (status == 200 && type == octets && !*connection) {
		memcpy(to, usual, sizeof usual - 1);
		return sizeof usual - 1 + format(to + sizeof usual - 1, HEADER_CAP, "%u\r\n\r\n", length);
	}
	return format(to, HEADER_CAP, "HTTP/1.1 %u %s\r\nContent-Type: %s\r\nContent-Length: %u\r\n%s%s\r\n", (u64)status, reason(status), type, length,
	              connection, allow);
}

/* Header and body in one write where they are small. */
static int respond(struct connection *c, const struct request *r, int status, const char *type, const void *body, u64 length) {
	char buffer[2 * HEADER_CAP];
	u64 n = format_header(buffer, r, status, type, length);

	if (r->method == HEAD)
		length = 0;
	if (n + length <= sizeof buffer) {
		memcpy(buffer + n, body, length);
		return stream_write(c->stream, buffer, n + length);
	}
	int error = stream_write(c->stream, buffer, n);
	return error ? error : stream_write(c->stream, body, length);
}

static int respond_error(struct connection *c, const struct request *r, int status) {
	char body[64];
	u64 n = format(body, sizeof body, "%u %s\n", (u64)status, reason(status));
	return respond(c, r, status, plain, body, n);
}

static int send_header(struct connection *c, const struct request *r, u64 length) {
	char buffer[HEADER_CAP];
	return stream_write(c->stream, buffer, format_header(buffer, r, 200, octets, length));
}

static u64 escape_html(char *to, u64 cap, struct text s) {
	u64 n = 0;

	for (u64 i = 0; i < s.length && n + 6 <= cap; i++) {
		switch (s.data[i]) {
		case '<': n += format(to + n, 6, "&lt;"); break;
		case '>': n += format(to + n, 6, "&gt;"); break;
		case '&': n += format(to + n, 6, "&amp;"); break;
		default: to[n++] = s.data[i];
		}
	}
	return n;
}

static u64 format_page(char *page) {
	char args_text[1024];
	struct text args = {args_text, 0};
	u64 hz = boot->tsc_hz, uptime = hz ? (rdtsc() - start_tsc) / (hz / 1000) : 0;

	for (u32 i = 0; i < boot->arg_count; i++) {
		if (i && args.length < sizeof args_text)
			args_text[args.length++] = ' ';
		args.length += escape_html(args_text + args.length, sizeof args_text - args.length, arg(i));
	}
	return format(page, PAGE_CAP,
	              "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">"
	              "<title>A kernel without a network stack</title>\n"
	              "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em;color:#222}"
	              "h1{font-size:1.5em}table{border-collapse:collapse}td{padding:.2em 1.5em .2em 0;border-bottom:1px solid #ddd}"
	              "code,pre{background:#f3f3f3}pre{padding:.7em;overflow:auto}</style>\n"
	              "<h1>Hello from a guest kernel</h1>\n"
	              "<p>This page was made in a virtual machine that has no network card, no driver and no TCP. Its bytes went through a ring "
	              "in memory shared with arcavm, which owns the socket.</p>\n"
	              "<table>\n"
	              "<tr><td>virtual CPUs<td>%u\n"
	              "<tr><td>this request ran on CPU<td>%u\n"
	              "<tr><td>RAM<td>%u MiB at %x\n"
	              "<tr><td>shared window<td>%u MiB at %x\n"
	              "<tr><td>pipes at most<td>%u\n"
	              "<tr><td>arguments<td><code>%t</code>\n"
	              "<tr><td>TSC<td>%u kHz\n"
	              "<tr><td>up for<td>%u ms\n"
	              "<tr><td>requests so far<td>%u\n"
	              "<tr><td>connections now<td>%u\n"
	              "</table>\n"
	              "<p>Also here:</p>\n"
	              "<pre>curl -s URL/bytes/1000000 | wc -c\ncurl -s --data-binary @FILE URL/echo | cmp - FILE\n"
	              "curl -s --data-binary @FILE URL/sha256</pre>\n</html>\n",
	              (u64)boot->cpu_count, (u64)this_cpu()->index, boot->ram_size >> 20, boot->ram_base, boot->window_size >> 20, boot->window_base,
	              (u64)boot->stream_limit, &args, hz / 1000, uptime, __atomic_load_n(&requests, __ATOMIC_RELAXED),
	              __atomic_load_n(&connections, __ATOMIC_RELAXED));
}

static int answer_root(struct connection *c, const struct request *r) {
	char *page = memory_alloc(PAGE_CAP);
	if (!page)
		return respond_error(c, r, 503);
	int error = respond(c, r, 200, html, page, format_page(page));
	memory_free(page, PAGE_CAP);
	return error;
}

/* Writes the pattern from the given phase on: n bytes. */
static void fill(u8 *to, u64 phase, u64 n) {
	while (n) {
		u64 part = MIN(n, PATTERN - phase);
		memcpy(to, pattern + phase, part);
		to += part;
		n -= part;
		phase = 0;
	}
}

/*
 * The period divides every ring's size: after one lap the ring already holds
 * what comes next, and only the cursor moves. The first lap goes in quarters of
 * the ring, so that the monitor isn't signalled for each page.
 */
static int answer_bytes(struct connection *c, const struct request *r) {
	struct stream *s = c->stream;
	u64 left = r->number, filled = 0;

	if (left <= HEADER_CAP)
		return respond(c, r, 200, octets, pattern, left);
	int error = send_header(c, r, left);

	if (error || r->method == HEAD)
		return error;
	while (left) {
		u8 *to;
		i64 n = filled < s->out_size ? stream_reserve(s, &to) : stream_wait_writable(s);
		if (n < 0)
			return n;
		n = MIN((u64)n, left);
		if (filled < s->out_size) {
			n = MIN((u64)n, s->out_size / 4);
			fill(to, filled % PATTERN, n);
			filled += n;
		}
		stream_commit(s, n);
		left -= n;
		thread_yield();
	}
	return 0;
}

static int answer_echo(struct connection *c, const struct request *r) {
	int error = send_header(c, r, r->body);

	for (u64 left = r->body; left && !error;) {
		u8 *from, *to;
		i64 n = stream_peek(c->stream, &from);
		if (n <= 0)
			return n ? n : -EIO;
		i64 room = stream_reserve(c->stream, &to);
		if (room < 0)
			return room;
		n = MIN(MIN((u64)n, (u64)room), left);
		memcpy(to, from, n);
		stream_commit(c->stream, n);
		stream_consume(c->stream, n);
		left -= n;
		thread_yield();
	}
	return error;
}

static int answer_sha256(struct connection *c, const struct request *r) {
	struct sha256 h;
	u8 sum[32];
	char text[65];

	sha256_start(&h);
	for (u64 left = r->body; left;) {
		u8 *data;
		i64 n = stream_peek(c->stream, &data);
		if (n <= 0)
			return n ? n : -EIO;
		n = MIN(MIN((u64)n, left), SLICE);
		sha256_add(&h, data, n);
		stream_consume(c->stream, n);
		left -= n;
		thread_yield();
	}
	sha256_sum(&h, sum);
	for (u32 i = 0; i < 64; i++)
		text[i] = "0123456789abcdef"[sum[i / 2] >> (i & 1 ? 0 : 4) & 15];
	text[64] = '\n';
	return respond(c, r, 200, plain, text, sizeof text);
}

/* The status that refuses the request, or 0. */
static int refusal(const struct request *r) {
	int posts = r->route == ECHO || r->route == SHA256;

	if (r->route == NOWHERE)
		return 404;
	if (posts ? r->method != POST : r->method != GET && r->method != HEAD)
		return 405;
	if (posts && !r->has_body)
		return 411;
	if (r->route == SHA256 && r->body > SHA256_MAX)
		return 413;
	return 0;
}

/* 1 to go on with the connection, 0 to end it in good order, or an error. */
static int serve_request(struct connection *c) {
	static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
	struct request r;
	int status = read_request(c, &r), error;

	if (status < 0)
		return 0;
	__atomic_add_fetch(&requests, 1, __ATOMIC_RELAXED);
	if (status) {
		r.keep_alive = 0;
		return respond_error(c, &r, status);
	}
	status = refusal(&r);
	if (status) {
		/*
		 * A client that waits for 100 may send the body or not; one whose body
		 * is too long should stop.
		 */
		if ((r.expects_continue && r.body) || status == 413)
			r.keep_alive = 0;
		error = respond_error(c, &r, status);
		if (!error && r.keep_alive)
			error = stream_skip(c->stream, r.body);
		return error ? error : r.keep_alive;
	}
	if (r.expects_continue && r.body && !r.http10 && !stream_readable_len(c->stream)) {
		error = stream_write(c->stream, go_on, sizeof go_on - 1);
		if (error)
			return error;
	}
	switch (r.route) {
	case ROOT: error = answer_root(c, &r); break;
	case BYTES: error = answer_bytes(c, &r); break;
	case ECHO: error = answer_echo(c, &r); break;
	default: error = answer_sha256(c, &r); break;
	}
	if (!error && (r.route == ROOT || r.route == BYTES))
		error = stream_skip(c->stream, r.body);
	return error ? error : r.keep_alive;
}

static int serve(struct stream *s, const struct endpoint *peer) {
	struct connection c;
	int more;

	(void)peer;
	c.stream = s;
	c.start = c.at = c.end = NULL;
	__atomic_add_fetch(&connections, 1, __ATOMIC_RELAXED);
	while ((more = serve_request(&c)) == 1)
		if (stream_readable_len(s))
			thread_yield();
	if (!more) {
		/*
		 * The peer reads the whole answer before it sees a reset for what it
		 * sent after it.
		 */
		release_lines(&c);
		stream_close_write(s);
		stream_skip(s, ~0ul);
	}
	__atomic_sub_fetch(&connections, 1, __ATOMIC_RELAXED);
	return more;
}

/*
 * The larger the ring, the fewer signals; but some 1,800 connections should
 * find room in the window.
 */
static u64 default_ring(void) {
	u64 size = TCP_RING_SIZE;
	while (size < 16 << 20 && size < boot->window_size / 2048)
		size *= 2;
	return size;
}

int program_main(void) {
	static struct tcp_listener listener;
	struct endpoint where;
	struct text address = boot->arg_count > 1 ? arg(1) : (struct text){"127.0.0.1:0", 11};
	u64 ring = default_ring();
	char name[ENDPOINT_TEXT];

	start_tsc = rdtsc();
	if (boot->arg_count > 3 || endpoint_parse(address, &where, NULL) || (boot->arg_count > 2 && (parse_number(arg(2), &ring) || ring > ~0u))) {
		log(LOG_ERROR, "usage: httpd [ADDR:PORT [BYTES OF AN OUTGOING RING]]");
		return 64;
	}
	int error = tcp_listen(&listener, &where, ring, TCP_RING_SIZE);
	if (!error)
		error = tcp_serve(&listener, serve);
	if (error) {
		log(LOG_ERROR, "listen at %t: error %d", &address, -(i64)error);
		return 1;
	}
	struct text bound = {name, endpoint_format(name, &listener.bound)};
	log(LOG_INFO, "listening on http://%t/", &bound);
	wait_for_stop();
	tcp_stop_listening(&listener);
	return 0;
}
