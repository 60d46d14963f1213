/* The control pipe's requests, one at a time. */
#include "rpc.h"

/* As dialect A numbers them; in B there is no MKDIR. */
enum { GET_ARGS, EXIT, OPEN, MKDIR, LISTEN, CONNECT };
enum { ARGS, PIPE, ACK, ERR };
enum { MAX_ARGS = 64, ARG_ROOM = 4096 };

static struct pipe control;
static struct spinlock lock;
/* Started with --dialect-b: the kernel of two older branches. */
static u8 dialect_b;

u64 arg_count;
static struct text args[MAX_ARGS];
static char arg_bytes[ARG_ROOM];

struct text arg(u64 n) { return n < arg_count ? args[n] : (struct text){"", 0}; }

/* The answer's first byte says what it is. */
static u8 ask(struct message *m) {
	spin_lock(&lock);
	pipe_request(&control, m);
	spin_unlock(&lock);
	return get_byte(m);
}

static u8 request_number(u8 in_a) { return dialect_b && in_a > MKDIR ? in_a - 1 : in_a; }

/* The kernel's own arguments are not the program's. */
static void add_arg(struct text t, char **room) {
	if (text_equal(t, "--notify")) {
		notifying = 1;
		return;
	}
	if (text_equal(t, "--dialect-b")) {
		dialect_b = 1;
		return;
	}
	assert_that(arg_count < MAX_ARGS && t.length <= (u64)(arg_bytes + ARG_ROOM - *room), "room for arguments");
	memcpy(*room, t.data, t.length);
	args[arg_count++] = (struct text){*room, t.length};
	*room += t.length;
}

void control_init(const struct entry *e) {
	struct message m;
	char *room = arg_bytes;

	pipe_attach(&control, e->rx, e->rx_length, e->tx, e->tx_length);
	message_new(&m, 1);
	put_varint(&m, GET_ARGS);
	assert_that(ask(&m) == ARGS, "GetArgs is answered by Args");
	for (u64 n = get_varint(&m); n; n--)
		add_arg(get_bytes(&m), &room);
	message_end(&m);
}

void control_exit(i32 code) {
	struct message m;

	message_new(&m, 16);
	put_varint(&m, EXIT);
	put_signed(&m, code);
	if (dialect_b) {
		/* It knows no answer to this. */
		spin_lock(&lock);
		u64 n = m.next - m.start;
		pipe_write(&control, &n, sizeof n);
		pipe_write(&control, m.start, n);
	} else {
		assert_that(ask(&m) == ACK, "Exit is answered by Ack");
		message_end(&m);
	}
	for (;;)
		halt_with_interrupts();
}

void control_stop(void) {
	static const u8 exit_0[] = {2, 0, 0, 0, 0, 0, 0, 0, EXIT, 0}, ack[] = {1, 0, 0, 0, 0, 0, 0, 0, ACK};
	u8 answer[sizeof ack];

	if (spin_try(&lock)) {
		pipe_write(&control, exit_0, sizeof exit_0);
		if (dialect_b)
			hypercall_exit(0);
		pipe_read(&control, answer, sizeof answer);
		assert_that(!memcmp(answer, ack, sizeof ack), "Exit is answered by Ack");
	}
	hypercall_exit(0);
}

void control_request(u8 number) {
	struct message m;

	message_new(&m, 1);
	put_byte(&m, number);
	ask(&m);
}

static int take_error(struct message *m) {
	u64 kind = get_varint(m);
	message_end(m);
	assert_that(kind <= 8, "kind of an error");
	return kind;
}

int file_open(struct pipe *p, struct text path, u32 mode) {
	struct message m;

	message_new(&m, path.length + 32);
	put_varint(&m, OPEN);
	put_bytes(&m, path.data, path.length);
	for (u32 bit = READ; bit <= TRUNCATE; bit <<= 1)
		put_byte(&m, !!(mode & bit));
	u8 answer = ask(&m);
	if (answer == ERR && !dialect_b)
		return take_error(&m);
	assert_that(answer == PIPE, "Open is answered by Pipe or Err");
	take_pipe(&m, p);
	return -1;
}

int make_folder(struct text path) {
	struct message m;

	assert_that(!dialect_b, "dialect B has no Mkdir");
	message_new(&m, path.length + 32);
	put_varint(&m, MKDIR);
	put_bytes(&m, path.data, path.length);
	u8 answer = ask(&m);
	if (answer == ERR)
		return take_error(&m);
	assert_that(answer == ACK, "Mkdir is answered by Ack or Err");
	message_end(&m);
	return -1;
}

void tcp_listen(struct pipe *p, const u8 ip[4], u16 port) {
	struct message m;

	message_new(&m, 32);
	put_varint(&m, request_number(LISTEN));
	for (u32 i = 0; i < 4; i++)
		put_byte(&m, ip[i]);
	put_varint(&m, port);
	assert_that(ask(&m) == PIPE, "Listen is answered by Pipe");
	take_pipe(&m, p);
}

void tcp_connect(struct pipe *p, struct text host, u16 port) {
	struct message m;

	message_new(&m, host.length + 32);
	put_varint(&m, request_number(CONNECT));
	put_bytes(&m, host.data, host.length);
	put_varint(&m, port);
	assert_that(ask(&m) == PIPE, "Connect is answered by Pipe");
	take_pipe(&m, p);
}
