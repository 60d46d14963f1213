/*
 * rpc-file STEP…
 *
 * Does each step and logs what came of it:
 *
 *   mkdir:PATH
 *   request:NUMBER       a request that no kernel makes, on the control pipe
 *   open:MODE:PATH       MODE of the letters r w c a t: read, write, create,
 *                        append, truncate
 *   read:N               logs what was read, N up to 256
 *   write:TEXT
 *   piece:N              how many bytes the following steps read and write at a
 *                        time, 1 MiB at most; 64 KiB without it
 *   fill:N check:N       writes N bytes of a pattern; reads them and compares
 *   push:N pull:N        writes N bytes of any value; reads N bytes unchecked
 *   start:N by:N end:N   seeks; the number may be negative
 *   close
 */
#include "../kernel/rpc.h"

enum { MAX_PIECE = 1 << 20, SHOWN = 256 };

static u64 piece_size = 64 << 10;

static const char *const kinds[] = {
	"NotFound", "PermissionDenied", "AlreadyExists", "InvalidInput", "InvalidData", "Unsupported", "OutOfMemory", "Interrupted", "Other",
};

static struct pipe file;
static int is_open;

static u8 pattern(u64 i) { return i + 7 * (i >> 8); }

static void result(struct text step, int kind) {
	log(LOG_INFO, "%t: %s", &step, kind < 0 ? "ok" : kinds[kind]);
}

static int open_step(struct text step, struct text rest) {
	const char *colon = memory_find(rest.data, rest.length, ':');
	u32 mode = 0;

	if (!colon || is_open)
		return -EINVAL;
	for (const char *c = rest.data; c < colon; c++)
		mode |= *c == 'r' ? READ : *c == 'w' ? WRITE : *c == 'c' ? CREATE : *c == 'a' ? APPEND : *c == 't' ? TRUNCATE : 0;
	int kind = file_open(&file, (struct text){colon + 1, rest.data + rest.length - colon - 1}, mode);
	is_open = kind < 0;
	result(step, kind);
	return 0;
}

static u64 fill(u8 *piece, u64 total, int with_pattern) {
	u64 at;
	for (at = 0; at < total;) {
		u64 n = MIN(piece_size, total - at);
		for (u64 i = 0; with_pattern && i < n; i++)
			piece[i] = pattern(at + i);
		u64 written = file_write(&file, piece, n);
		at += written;
		if (written < n)
			break;
	}
	return at;
}

static u64 check(u8 *piece, u64 total, int with_pattern) {
	u64 at = 0, n;
	while (at < total && (n = file_read(&file, piece, MIN(piece_size, total - at)))) {
		for (u64 i = 0; with_pattern && i < n; i++)
			if (piece[i] != pattern(at + i))
				return at + i;
		at += n;
	}
	return at;
}

static int parse_signed(struct text s, i64 *number) {
	u64 magnitude;
	int negative = s.length && s.data[0] == '-';
	int error = parse_number((struct text){s.data + negative, s.length - negative}, &magnitude);
	*number = negative ? -(i64)magnitude : (i64)magnitude;
	return error;
}

static int number_step(struct text step, struct text word, i64 n) {
	u8 *piece = block_alloc(MAX_PIECE);
	u64 got;

	if (text_equal(word, "read")) {
		struct text t = {(char *)piece, file_read(&file, piece, MIN((u64)n, SHOWN))};
		log(LOG_INFO, "%t: %u bytes: %t", &step, t.length, &t);
		block_free(piece, MAX_PIECE);
		return 0;
	}
	if (text_equal(word, "fill"))
		got = fill(piece, n, 1);
	else if (text_equal(word, "check"))
		got = check(piece, n, 1);
	else if (text_equal(word, "push"))
		got = fill(piece, n, 0);
	else if (text_equal(word, "pull"))
		got = check(piece, n, 0);
	else if (text_equal(word, "start"))
		got = file_seek(&file, SEEK_START, n);
	else if (text_equal(word, "by"))
		got = file_seek(&file, SEEK_CURRENT, n);
	else if (text_equal(word, "end"))
		got = file_seek(&file, SEEK_END, n);
	else
		return -EINVAL;
	block_free(piece, MAX_PIECE);
	log(LOG_INFO, "%t: %u", &step, got);
	return 0;
}

static int do_step(struct text step) {
	const char *colon = memory_find(step.data, step.length, ':');
	struct text word = {step.data, colon ? (u64)(colon - step.data) : step.length};
	struct text rest = {colon + 1, colon ? step.length - word.length - 1 : 0};
	i64 number;

	if (text_equal(word, "mkdir")) {
		result(step, make_folder(rest));
		return 0;
	}
	if (text_equal(word, "open"))
		return open_step(step, rest);
	if (text_equal(word, "request")) {
		if (parse_signed(rest, &number))
			return -EINVAL;
		control_request(number);
		return 0;
	}
	if (text_equal(word, "piece")) {
		if (parse_number(rest, &piece_size) || !piece_size || piece_size > MAX_PIECE)
			return -EINVAL;
		result(step, -1);
		return 0;
	}
	if (!is_open) {
		log(LOG_INFO, "%t: nothing is open", &step);
		return 0;
	}
	if (text_equal(word, "close")) {
		file_close(&file);
		is_open = 0;
		result(step, -1);
		return 0;
	}
	if (text_equal(word, "write")) {
		log(LOG_INFO, "%t: %u", &step, file_write(&file, rest.data, rest.length));
		return 0;
	}
	return parse_signed(rest, &number) ? -EINVAL : number_step(step, word, number);
}

i32 program_main(void) {
	struct allocator_state before = allocator_state();

	for (u64 i = 1; i < arg_count; i++) {
		struct text step = arg(i);
		if (do_step(step)) {
			log(LOG_ERROR, "not a step, or not now: %t", &step);
			return 64;
		}
	}
	if (is_open)
		file_close(&file);
	return allocator_is_again(&before) ? 0 : 1;
}
