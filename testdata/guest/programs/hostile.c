/*
 * hostile SEED OPERATIONS ADDR:PORT TLS-ADDR:PORT
 *
 * Attacks the monitor. One thread on each CPU but the first, or on the only
 * one, makes pipes of every protocol, writes random and crafted values over
 * their headers, rings and the pending bitmaps, sends frames of every kind that
 * are right or nearly so, and makes hypercalls with wild arguments: so many
 * operations each. TLS-ADDR:PORT is a TLS server's. CPU 0 meanwhile keeps an
 * echo stream to ADDR:PORT going and checks every byte; at the end it breaks
 * the control pipe, in a way that SEED chooses, and goes on a little. Exit code
 * 0, or 1 with a log record if the good stream suffered or a hypercall gave
 * what no hypercall may give.
 */
#include "../proto/file.h"
#include "../proto/open.h"
#include "../proto/tcp.h"

enum { PROTOCOLS = 10, TARGETS = 4, RING = 4096, CHUNK = 1024, LAST_ROUNDS = 8 };
enum { CALL_LOG = 1, CALL_SYMNAME, CALL_MEMSET, CALL_MEMCLR, CALL_NOTIFY_READ = 16, CALL_NOTIFY_WRITE, CALL_CLOCK };
enum { KIND_OPEN = 3, KIND_READ_FILE = 0x10, KIND_OPEN_FILE = 0x15, KIND_CLOSE_FILE = 0x1F, KIND_ACCEPT = 0x20, KIND_SEND_DATAGRAM = 0x30,
       KIND_RESOLVE_NAME = 0x40, KIND_RESOLVE_ADDRESS };

static u64 seed, operations;
static struct endpoint peer, tls_peer;
static u32 attackers, done, failed;
/* Memory that only hypercalls read and write. */
static u8 scratch[MAX_CPUS][4096] __attribute__((aligned(4096)));
static struct stream *targets[MAX_CPUS][TARGETS];

struct dice {
	u64 state;
};

static u64 roll(struct dice *d) {
	d->state ^= d->state >> 12;
	d->state ^= d->state << 25;
	d->state ^= d->state >> 27;
	return d->state * 0x2545F4914F6CDD1Dul;
}

/* A number at which checks go wrong, or any other. */
static u64 value(struct dice *d) {
	u64 r = roll(d);

	switch (r & 3) {
	case 0:
		return (r >> 8 & 7) - 3;
	case 1:
		return (1ul << (r >> 8 & 63)) + (r >> 16 & 3) - 1;
	case 2: /* a state and a waiting flag */
		return (r >> 8 & 3) | (r >> 16 & 1) << 32 | (r & 1ul << 60 ? (r >> 24 & 0xFF) << 16 : 0);
	default:
		return roll(d);
	}
}

/* Its results are 0 and negative errnos, but for a clock's time. */
static void call(u64 number, u64 a, u64 b, u64 c) {
	i64 result = number;

	asm volatile("outb %%al, %%dx" : "+a"(result) : "d"(0), "D"(a), "S"(b), "c"(c) : "memory");
	if ((result > 0 && (number != CALL_CLOCK || a > CLOCK_ELAPSED)) || result < -4095) {
		log(LOG_ERROR, "hypercall %u gave %d", number, result);
		__atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
	}
}

/*
 * An address where hypercalls must not write more than the scratch page,
 * whatever the length.
 */
static u64 address(struct dice *d, u8 *page) {
	u64 r = roll(d);

	switch (r & 7) {
	case 0:
		return 0;
	case 1:
		return boot->ram_base - 1 - (r >> 8 & 15);
	case 2:
		return -1 - (r >> 8 & 15);
	case 3:
		return roll(d) | 1ul << 45;
	default:
		return physical(page) + (r >> 8 & 2047);
	}
}

/* What all attackers write to, and give back to the host meanwhile. */
enum { WIDE = 4 << 20 };
static u8 wide[WIDE];

/* Numbers that end the VM are left out. */
static void wild_call(struct dice *d, u8 *page) {
	u64 r = roll(d);
	u64 *record = (u64 *)(page + (r >> 16 & 0x780));
	u64 length = r & 1ul << 40 ? value(d) : r >> 48 & 1023;

	switch (r & 7) {
	case 0:
		record[0] = r >> 8 & 7;
		record[1] = address(d, page);
		record[2] = length & 0x3FF;
		record[3] = r >> 12 & 1;
		record[4] = address(d, page);
		record[5] = value(d);
		record[10] = address(d, page);
		record[11] = length;
		call(CALL_LOG, r & 1ul << 32 ? physical(record) : address(d, page), 0, 0);
		return;
	case 1:
		record[0] = DIRECT_MAP + boot->ram_base + (r >> 8 & 0xFFFF);
		record[3] = address(d, page);
		record[4] = r >> 24 & 1023; /* the name stays in the page */
		call(CALL_SYMNAME, physical(record), 0, 0);
		return;
	case 2:
		call(CALL_SYMNAME, boot->ram_base - 8 - (r >> 8 & 63), 0, 0);
		return;
	case 3:
		call(CALL_MEMSET, address(d, page), r >> 8, r >> 48 & 1023);
		return;
	case 4:
		wide[r >> 8 & (WIDE - 1)] = 1;
		if (r >> 32 & 63)
			call(CALL_MEMCLR, address(d, page) | 1ul << 45, length, 0);
		else
			call(CALL_MEMCLR, physical(wide) + (r >> 16 & (WIDE / 2 - 1)), WIDE / 4 + (r >> 38 & (WIDE / 4 - 1)), 0);
		return;
	case 5:
		call(CALL_MEMSET, boot->ram_base + boot->ram_size - 8, 0, 9 + (r >> 8 & 0xFFFF));
		return;
	case 6:
		call(CALL_NOTIFY_READ + (r >> 8 & 1), value(d), 0, 0);
		return;
	default:
		if (r & 512)
			call(CALL_CLOCK, r & 1024 ? value(d) : r >> 11 & 3, 0, 0);
		call(r & 256 ? 6 + value(d) % 10 : 1ul << 63 | value(d), value(d), value(d), value(d));
	}
}

/*
 * In the bitmap of any CPU. Only bits of events that exist: what lies behind
 * the bitmap belongs to others. CPU 0's are the good stream's: a bit there is
 * set as the monitor would, on all levels and with an interrupt, or the monitor
 * would rightly believe that one is on its way.
 */
static void wild_bits(struct dice *d) {
	u64 event = roll(d) % (2 * boot->stream_limit), leaf = event / 64, mid = leaf / 64;
	u64 r = roll(d);
	struct cpu *c = &cpus[(r >> 8 & 63) % boot->cpu_count];
	struct pending *p = c->pending;

	if (!c->index)
		r = 7;
	if (r & 1)
		__atomic_fetch_or(&p->leaf[leaf], 1ul << (event & 63), __ATOMIC_SEQ_CST);
	if (r & 2)
		__atomic_fetch_or(&p->mid[mid], 1ul << (leaf & 63), __ATOMIC_SEQ_CST);
	if (r & 4)
		__atomic_fetch_or(&p->top, 1ul << mid, __ATOMIC_SEQ_CST);
	if (!c->index)
		cpu_kick(c);
	else if ((r & 0x38) == 0)
		__atomic_store_n(&p->leaf[leaf], 0, __ATOMIC_SEQ_CST);
}

/* One thread that attacks. */
struct attacker {
	struct dice dice;
	u64 silent;  /* the last pipe made for a listener's connection */
	u32 renewed; /* pipes made */
	int mild;    /* what is drafted shall be right */
	u32 drafted; /* requests on this pipe */
};

/* True once in n times, and never if what is drafted shall be right. */
static int odd(struct attacker *a, u64 n) {
	return !a->mild && !(roll(&a->dice) % n);
}

/* A frame under construction. */
struct draft {
	struct frame_header header;
	u8 payload[256];
};

static void put(struct draft *f, const void *data, u64 n) {
	memcpy(f->payload + f->header.length, data, n);
	f->header.length += n;
}

static void put_u64(struct draft *f, u64 n) {
	put(f, &n, sizeof n);
}

static void put_path(struct draft *f, struct dice *d) {
	static const char paths[][8] = {"a", "b", "f", "f/c", "a/../b", "../x", "/", ".", "", "f/\0", "\xFF"};
	const char *path = paths[roll(d) % (sizeof paths / sizeof *paths)];

	put(f, path, strlen(path));
}

/*
 * An address to which a datagram does no harm: the peer's, mostly,
 * or one with a wild port or family.
 */
static struct endpoint somewhere(struct dice *d) {
	struct endpoint e = peer;
	u64 r = roll(d);

	if (!(r & 7))
		e.port = 0;
	if (!(r & 0x38))
		e.family = r >> 8;
	if (!(r & 0x1C0))
		e.scope = r >> 16;
	return e;
}

static void put_text(struct draft *f, const char *text) {
	put(f, text, strlen(text));
}

/* Names that the monitor's side knows something of, and others. */
static const char *name(struct attacker *a) {
	static const char names[][16] = {"server.test", "many.test", "stalls.test", "none.test", "denied", "127.0.0.1", "::1", "\xFF"};

	return names[a->mild ? 0 : roll(&a->dice) % (sizeof names / sizeof *names)];
}

static void put_socket(struct draft *f, struct attacker *a) {
	static const char paths[][8] = {"server", "server", "s", "t", "../s", "s/s", ".", ""};

	put_text(f, paths[a->mild ? 0 : roll(&a->dice) % (sizeof paths / sizeof *paths)]);
}

/*
 * A list of ALPN names, or nearly: the length of its text says how long it is.
 */
static const char *alpn(struct attacker *a) {
	static const char lists[][16] = {"", "\x02h2", "\x08http/1.1\x02h2", "\x05h2", "\x02h2\x01"};

	return lists[roll(&a->dice) % (a->mild ? 3 : sizeof lists / sizeof *lists)];
}

static void draft_tls_connect(struct draft *f, struct attacker *a) {
	const char *host = odd(a, 3) ? name(a) : "", *server = odd(a, 3) ? name(a) : "", *list = alpn(a);
	struct endpoint e = odd(a, 4) ? peer : tls_peer;

	if (*host)
		e = (struct endpoint){.port = e.port};
	put(f, &e, sizeof e);
	put_u64(f, strlen(host) | strlen(server) << 16 | strlen(list) << 32 | (odd(a, 16) ? value(&a->dice) << 48 : 0));
	put_text(f, host);
	put_text(f, server);
	put_text(f, list);
}

/* Drafts the Open of a protocol. */
static void draft_open(struct draft *f, struct attacker *a, u16 protocol) {
	static const struct endpoint nowhere;
	struct dice *d = &a->dice;
	u64 r = roll(d);
	struct endpoint e = a->mild ? peer : somewhere(d);
	const char *list;

	*f = (struct draft){.header = {0, KIND_OPEN, 0, r}};
	put_u64(f, protocol);
	switch (protocol) {
	case PROTOCOL_TCP_LISTENER:
		e.port = 0;
		put(f, &e, sizeof e);
		put_u64(f, a->mild ? 0 : value(d));
		break;
	case PROTOCOL_TCP_CONNECTION:
		e.reserved = r >> 12 & 1;
		if (odd(a, 4))
			e = (struct endpoint){.reserved = e.reserved, .port = e.port};
		put(f, &e, sizeof e);
		if (e.reserved)
			put(f, &(u32){a->mild ? 0 : value(d)}, 4);
		if (!e.family)
			put_text(f, name(a));
		break;
	case PROTOCOL_UDP:
		e.port = 0;
		put(f, &e, sizeof e);
		put(f, r >> 12 & 1 && !a->mild ? &e : &nowhere, sizeof e);
		break;
	case PROTOCOL_UNIX_LISTENER:
		put_u64(f, r >> 12 & 1 ? 0 : value(d) & 0xFFFFFFFF);
		if (a->mild) /* a socket of its own */
			put(f, (const char[]){'l', 'a' + (r & 15), 'a' + (r >> 4 & 15)}, 3);
		else
			put_socket(f, a);
		break;
	case PROTOCOL_UNIX_CONNECTION:
		put_socket(f, a);
		break;
	case PROTOCOL_TLS_CONNECTION:
		draft_tls_connect(f, a);
		break;
	case PROTOCOL_TLS_LISTENER:
		e.port = 0;
		list = alpn(a);
		put(f, &e, sizeof e);
		put_u64(f, (r >> 16 & 7) | strlen(list) << 32);
		put_text(f, list);
		break;
	case PROTOCOL_FILE_SYSTEM:
	case PROTOCOL_RESOLVER:
	case PROTOCOL_STDIO:
		if (odd(a, 16))
			put(f, scratch, 1 + (r >> 16 & 15));
		break;
	default:
		put(f, &e, sizeof e);
		put(f, scratch, r >> 16 & 15);
	}
}

/* Drafts a request of a kind of the protocol, or of any. */
static void draft_request(struct draft *f, struct attacker *a, u16 protocol) {
	struct dice *d = &a->dice;
	u64 r = roll(d), kind = KIND_OPEN_FILE + (r >> 8) % (KIND_CLOSE_FILE - KIND_OPEN_FILE + 1);
	struct endpoint e = somewhere(d);

	if (protocol == PROTOCOL_TCP_LISTENER || protocol == PROTOCOL_UNIX_LISTENER || protocol == PROTOCOL_TLS_LISTENER)
		kind = KIND_ACCEPT;
	else if (protocol == PROTOCOL_UDP)
		kind = KIND_SEND_DATAGRAM;
	else if (protocol == PROTOCOL_RESOLVER)
		kind = KIND_RESOLVE_NAME + (r >> 8 & 1);
	else if (!(r & 7))
		kind = KIND_READ_FILE;
	if (odd(a, 16))
		kind = r >> 16 & 0x7F;
	/* Half of what is about files is about one that can be written. */
	int writable = protocol == PROTOCOL_FILE_SYSTEM && (a->mild || r & 1ul << 62);
	if (writable)
		kind = (const u8[]){KIND_OPEN_FILE, KIND_OPEN_FILE + 1, KIND_OPEN_FILE + 2, KIND_OPEN_FILE + 8}[a->mild ? a->drafted & 3 : r >> 8 & 3];
	u64 handle = writable ? 1 : r >> 32 & 7; /* small numbers */
	int near = writable || r & 1ul << 40;
	*f = (struct draft){.header = {0, kind, 0, r}};
	switch (kind) {
	case KIND_READ_FILE:
		put_u64(f, value(d));
		put_u64(f, value(d));
		put_path(f, d);
		break;
	case KIND_OPEN_FILE:
		put_u64(f, writable ? FILE_READ | FILE_WRITE | FILE_CREATE : r & 1ul << 32 ? r >> 40 & 63 : value(d));
		if (writable)
			put_text(f, "b");
		else
			put_path(f, d);
		break;
	case KIND_OPEN_FILE + 1: /* ReadRequest */
		put_u64(f, handle);
		put_u64(f, value(d));
		put_u64(f, value(d));
		break;
	case KIND_OPEN_FILE + 2: /* WriteRequest: near the beginning, or no disk is large enough */
		put_u64(f, handle);
		put_u64(f, near ? r >> 41 & 0xFFFF : 1ul << 63 | value(d));
		put(f, scratch, r >> 58 & 63);
		break;
	case KIND_OPEN_FILE + 3: /* StatRequest */
		put_u64(f, r & 1ul << 32 ? 0 : r >> 33 & 7);
		put_u64(f, r >> 36 & 1);
		if (r & 1ul << 32)
			put_path(f, d);
		break;
	case KIND_OPEN_FILE + 4: /* ListRequest */
		put_u64(f, (r & 1ul << 32 ? 4096 : (u32)value(d)) | (r >> 33 & 3) << 32);
		put_path(f, d);
		put_path(f, d);
		break;
	case KIND_OPEN_FILE + 5: /* MkdirRequest */
		put_u64(f, r >> 32 & 1);
		put_path(f, d);
		break;
	case KIND_OPEN_FILE + 6: /* RemoveRequest */
		put_path(f, d);
		break;
	case KIND_OPEN_FILE + 7: /* RenameRequest */
		put_u64(f, 1 + (r >> 32 & 3));
		put_path(f, d);
		put_path(f, d);
		break;
	case KIND_OPEN_FILE + 8: /* TruncateRequest */
		put_u64(f, handle);
		put_u64(f, near ? r >> 41 & 0xFFFF : 1ul << 63 | value(d));
		break;
	case KIND_OPEN_FILE + 9: /* SyncRequest */
	case KIND_CLOSE_FILE:
		put_u64(f, r >> 32 & 7);
		break;
	case KIND_ACCEPT:
		put_u64(f, odd(a, 2) ? (r >> 32 & 63) | (r & 1ul << 40 ? value(d) << 32 : 0) : a->silent);
		break;
	case KIND_RESOLVE_NAME:
		put_u64(f, odd(a, 8) ? value(d) : (const u64[]){0, 4, 6, 0}[r >> 32 & 3]);
		put_text(f, name(a));
		break;
	case KIND_RESOLVE_ADDRESS:
		e = odd(a, 3) ? e : peer;
		e.port = odd(a, 16);
		put(f, &e, sizeof e);
		break;
	case KIND_SEND_DATAGRAM:
		e = a->mild ? peer : e;
		e.port = a->mild || r & 1ul << 32 ? e.port : 0;
		put(f, &e, sizeof e);
		put(f, scratch, r >> 40 & 127);
		break;
	default:
		put(f, scratch, r >> 40 & 127);
	}
}

/* Sends a frame, now and then one whose header isn't what it should be. */
static int send_draft(struct stream *s, struct draft *f, struct attacker *a) {
	u32 length = f->header.length;
	u64 r = roll(&a->dice);

	if (odd(a, 16))
		((u8 *)&f->header)[r >> 4 & 15] ^= 1 << (r >> 8 & 7);
	return stream_write(s, f, sizeof f->header + length);
}

/*
 * Asks for pipes that there can't be. Those requests are in order, and the
 * control pipe lives on.
 */
static void absurd_pipe(struct dice *d) {
	struct stream *s;

	if (!stream_open(&s, value(d), value(d)))
		stream_close(s);
}

/*
 * The protocols of an attacker's first pipes, on which all is right until it
 * lets go of them: so the attack begins with something at work in every
 * handler. SILENT is no protocol but a pipe that is given a connection by the
 * listener after it.
 */
enum { SILENT = 0xFFFF };
static const u16 mild_pipes[] = {
	SILENT, PROTOCOL_TLS_LISTENER, PROTOCOL_TLS_CONNECTION, PROTOCOL_RESOLVER, PROTOCOL_STDIO, PROTOCOL_UNIX_CONNECTION, SILENT, PROTOCOL_TCP_LISTENER,
	PROTOCOL_UNIX_LISTENER, PROTOCOL_UDP, PROTOCOL_TCP_CONNECTION, PROTOCOL_FILE_SYSTEM,
};
enum { MILD_PIPES = sizeof mild_pipes / sizeof *mild_pipes };

/*
 * Gives the monitor and those outside some time to answer with more than so
 * many bytes.
 */
static void await_answer(struct stream *s, u64 beyond) {
	u64 begin = rdtsc(), patience = boot->tsc_hz ? boot->tsc_hz : 1ul << 31;

	while (__atomic_load_n(&s->in->write_cursor, __ATOMIC_ACQUIRE) <= beyond && !__atomic_load_n(&s->in->writer_state, __ATOMIC_ACQUIRE) &&
	       rdtsc() - begin < patience)
		thread_yield();
}

static u16 choose_protocol(struct attacker *a) {
	u64 r = roll(&a->dice);
	/* The lower numbers more often than the higher ones. */
	u16 protocol = (r & 15) < PROTOCOLS ? r & 15 : (r & 15) < 14 ? r >> 4 & 3 : (r & 15) == 14 ? SILENT : r >> 16;

	a->mild = a->renewed < MILD_PIPES;
	if (a->mild)
		return mild_pipes[a->renewed];
	/* Few connections: each takes a port of the host. */
	if ((protocol == PROTOCOL_TCP_CONNECTION || protocol == PROTOCOL_TLS_CONNECTION) && r & 0x3000000)
		return PROTOCOL_FILE_SYSTEM;
	return protocol;
}

/*
 * Opens a new pipe with a protocol and sends some requests, right or nearly.
 * What is sent fits into the ring, so nothing waits. The first two answers to a
 * listener are Opened and IncomingConnection.
 */
static struct stream *renew(struct attacker *a) {
	struct dice *d = &a->dice;
	struct draft f;
	struct stream *s;
	u64 r = roll(d);

	if (!(r & 0xF000))
		absurd_pipe(d);
	if (stream_open(&s, RING, RING))
		return NULL;
	u16 protocol = choose_protocol(a);
	a->renewed++;
	if (protocol == SILENT) {
		a->silent = s->id;
		return s;
	}
	draft_open(&f, a, protocol);
	if (odd(a, 16))
		f.header.kind = r >> 16;
	if (send_draft(s, &f, a))
		return s;
	if (a->mild)
		await_answer(s, 0);
	u32 n = !a->mild ? r >> 32 & 7 : protocol == PROTOCOL_FILE_SYSTEM ? 4 : 1;
	for (a->drafted = 0; a->drafted < n; a->drafted++) {
		draft_request(&f, a, protocol);
		if (send_draft(s, &f, a))
			break;
	}
	if (a->mild && (protocol == PROTOCOL_TLS_LISTENER || protocol == PROTOCOL_TCP_LISTENER))
		await_answer(s, sizeof f.header + 8 + sizeof(struct endpoint));
	return s;
}

static void give_up(struct stream *s) {
	__atomic_store_n((u64 *)&s->out->writer_state, 1, __ATOMIC_SEQ_CST);
	call(CALL_NOTIFY_READ, s->id, 0, 0);
	__atomic_store_n((u64 *)&s->in->reader_state, 1, __ATOMIC_SEQ_CST);
	call(CALL_NOTIFY_WRITE, s->id, 0, 0);
}

static void attack(struct dice *d, struct stream *s, u8 *page) {
	u64 r = roll(d);
	u64 *words[] = {
		&s->out->write_cursor, (u64 *)&s->out->writer_state, &s->out->read_cursor, (u64 *)&s->out->reader_state,
		&s->in->write_cursor, (u64 *)&s->in->writer_state, &s->in->read_cursor, (u64 *)&s->in->reader_state,
	};

	switch (r & 15) {
	case 0 ... 6:
		__atomic_store_n(words[r >> 8 & 7], r & 16 ? value(d) : *words[r >> 8 & 7] + (r >> 16 & 7) - 3, __ATOMIC_SEQ_CST);
		return;
	case 7 ... 8:
		call(CALL_NOTIFY_READ, s->id, 0, 0);
		return;
	case 9 ... 10:
		call(CALL_NOTIFY_WRITE, s->id, 0, 0);
		return;
	case 11: /* pipes of others, the good one too */
		call(CALL_NOTIFY_READ + (r >> 8 & 1), (r >> 16 & 63) | (r & 512 ? value(d) << 32 : 0), 0, 0);
		return;
	case 12:
		wild_bits(d);
		return;
	case 13:
		memset((r & 16 ? s->out_data : s->in_data) + (r >> 8 & (RING / 2 - 1)), 0xFF, r >> 24 & 63);
		return;
	default:
		wild_call(d, page);
	}
}

static void attacker(void *argument) {
	u64 index = (u64)argument;
	struct attacker a = {.dice = {(seed * MAX_CPUS + index) * 0x9E3779B97F4A7C15ul + 1}};
	struct dice *d = &a.dice;
	struct stream **own = targets[index];

	for (u64 i = 0; i < operations; i++) {
		u64 r = roll(d);
		struct stream **s = &own[r >> 32 & (TARGETS - 1)];
		if (!*s) {
			*s = renew(&a);
		} else if ((r & 63) == 0) {
			give_up(*s);
			*s = NULL;
		} else {
			attack(d, *s, scratch[this_cpu()->index]);
		}
		thread_yield();
	}
	for (u32 i = 0; i < TARGETS; i++)
		if (own[i])
			give_up(own[i]);
	__atomic_add_fetch(&done, 1, __ATOMIC_RELEASE);
}

static int echo(struct stream *s, struct dice *d) {
	static u8 sent[CHUNK], got[CHUNK];
	u64 n = 1 + roll(d) % CHUNK;

	for (u64 i = 0; i < 8; i++)
		((u64 *)sent)[i] = roll(d);
	memmove(sent + 64, sent, CHUNK - 64);
	if (stream_write(s, sent, n) || stream_read_full(s, got, n)) {
		log(LOG_ERROR, "the good stream has ended");
		return 1;
	}
	if (memcmp(sent, got, n)) {
		log(LOG_ERROR, "the good stream's bytes are not what was sent");
		return 1;
	}
	thread_yield();
	return 0;
}

/* Breaks the control pipe, which works up to here, behind the kernel's back. */
static void break_control(void) {
	const struct pipe_descriptor *control = &boot->control_pipe;
	struct ring_header *out = virtual(boot->window_base + control->header);
	u8 *ring = virtual(boot->window_base + control->outgoing);
	u64 cursor = __atomic_load_n(&out->write_cursor, __ATOMIC_RELAXED);
	struct {
		struct frame_header header;
		u32 outgoing_size, incoming_size, home_cpu, reserved;
	} request = {{16, 1, 0, 0}, RING, RING, 0, 0};
	u64 end = cursor + sizeof request;

	switch (seed & 7) {
	case 0:
		request.header.kind = 0x7777;
		break;
	case 1: /* no request of this pipe */
		request.header.kind = KIND_READ_FILE;
		break;
	case 2:
		request.header.length = ~0u;
		break;
	case 3:
		request.header.flags = 1;
		break;
	case 4:
		request.reserved = 1;
		break;
	case 5:
		end = cursor - 1;
		break;
	case 6:
		end = cursor + (1ul << 60);
		break;
	default:
		__atomic_store_n(&out->writer_state, 0x7777, __ATOMIC_SEQ_CST);
	}
	for (u32 i = 0; i < sizeof request; i++)
		ring[(cursor + i) & (control->outgoing_size - 1)] = ((u8 *)&request)[i];
	__atomic_store_n(&out->write_cursor, end, __ATOMIC_SEQ_CST);
	call(CALL_NOTIFY_READ, control->id, 0, 0);
}

int program_main(void) {
	u64 rounds = 0;
	struct stream *good;

	if (boot->arg_count != 5 || parse_number(arg(1), &seed) || parse_number(arg(2), &operations) || endpoint_parse(arg(3), &peer, NULL) ||
	    endpoint_parse(arg(4), &tls_peer, NULL)) {
		log(LOG_ERROR, "usage: hostile SEED OPERATIONS ADDR:PORT TLS-ADDR:PORT");
		return 64;
	}
	struct dice d = {seed * 2 + 1};
	int error = tcp_connect(&good, &peer, (struct text){"", 0});
	if (error) {
		log(LOG_ERROR, "connect: error %d", -(i64)error);
		return 1;
	}
	attackers = MAX(boot->cpu_count - 1, 1);
	for (u64 i = 0; i < attackers; i++)
		if (thread_start((i + 1) % boot->cpu_count, attacker, (void *)i))
			panic("no memory for a thread");
	while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) != attackers) {
		if (echo(good, &d))
			return 1;
		rounds++;
	}
	break_control();
	for (u32 i = 0; i < LAST_ROUNDS; i++)
		if (echo(good, &d))
			return 1;
	stream_close(good);
	log(LOG_INFO, "%u operations, %u good rounds", attackers * operations, rounds);
	return __atomic_load_n(&failed, __ATOMIC_RELAXED);
}
