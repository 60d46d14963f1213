#include "file.h"
#include "open.h"

enum {
	KIND_READ_FILE_REQUEST = 0x10,
	KIND_FILE_DATA,
	KIND_FILE_DONE,
	KIND_FILE_INFO,
	KIND_FILE_LIST,
	KIND_OPEN_FILE_REQUEST,
	KIND_READ_REQUEST,
	KIND_WRITE_REQUEST,
	KIND_STAT_REQUEST,
	KIND_LIST_REQUEST,
	KIND_MKDIR_REQUEST,
	KIND_REMOVE_REQUEST,
	KIND_RENAME_REQUEST,
	KIND_TRUNCATE_REQUEST,
	KIND_SYNC_REQUEST,
	KIND_CLOSE_REQUEST,
};
enum { MKDIR_PARENTS = 1 };
enum { PATHS_MAX = 8192, DATA_MAX = 65536, LIST_MAX = 4096 };

static const struct text nothing = {"", 0};

int file_system_open(struct file_system *f) {
	struct stream *s;
	int error = stream_open(&s, 8192, 65536);

	if (error)
		return error;
	error = protocol_open(s, PROTOCOL_FILE_SYSTEM, NULL, 0, NULL, 0);
	if (!error)
		error = channel_start(&f->channel, s);
	if (error)
		stream_close(s);
	return error;
}

void file_system_close(struct file_system *f) {
	channel_close(&f->channel);
}

/*
 * What takes the answer to a request: status is what its last frame said, 0 or
 * a negative errno.
 */
struct answer {
	i64 status;
	u16 kind;
	/*
	 * Takes what follows the status, n bytes; status is 0. Its errors are the
	 * stream's.
	 */
	int (*take)(struct answer *a, struct stream *s, u64 n);
	void *to; /* for take */
	u64 length;
	file_sink *sink;
	void *argument;
};

static int take(void *argument, struct stream *s, const struct frame_header *header) {
	struct answer *a = argument;
	u32 status[2];

	if (header->kind != a->kind || header->length < sizeof status)
		return -EPROTO;
	int error = stream_read_full(s, status, sizeof status);
	if (error)
		return error;
	u64 rest = header->length - sizeof status;
	a->status = -(i64)status[0];
	return a->status ? stream_skip(s, rest) : a->take(a, s, rest);
}

/* An answer of length bytes. */
static int take_bytes(struct answer *a, struct stream *s, u64 n) {
	return n == a->length ? stream_read_full(s, a->to, n) : -EPROTO;
}

/*
 * Sends a request, count words and then up to two texts, and has its answer
 * taken. The stream's error, or what the answer said.
 */
static i64 send(struct file_system *f, u16 kind, const u64 *words, u32 count, struct text text, struct text other, struct answer *a) {
	struct {
		struct frame_header header;
		u64 words[3];
	} frame = {.header = {8 * count + text.length + other.length, kind, 0, 0}};
	struct text parts[] = {text, other};

	memcpy(frame.words, words, 8 * count);
	int error = channel_request(&f->channel, &frame.header, 8 * count, parts, 2, take, a);
	return error ? error : a->status;
}

static i64 ask(struct file_system *f, u16 kind, const u64 *words, u32 count, struct text path, struct text other, struct answer *a) {
	return path.length + other.length > PATHS_MAX ? -EINVAL : send(f, kind, words, count, path, other, a);
}

/* A request that a FileDone answers. */
static int ask_done(struct file_system *f, u16 kind, const u64 *words, u32 count, struct text path, struct text other, u64 *value) {
	u64 ignored;
	struct answer a = {.kind = KIND_FILE_DONE, .take = take_bytes, .to = value ? value : &ignored, .length = 8};

	return ask(f, kind, words, count, path, other, &a);
}

/* A frame of FileData: length is the sum of those before. */
static int take_data(struct answer *a, struct stream *s, u64 n) {
	u64 offset;

	if (n < sizeof offset || n > sizeof offset + DATA_MAX)
		return -EPROTO;
	int error = stream_read_full(s, &offset, sizeof offset);
	if (error)
		return error;
	for (n -= sizeof offset; n;) {
		u8 *data;
		i64 part = stream_peek(s, &data);
		if (part <= 0)
			return part ? part : -EIO;
		part = MIN((u64)part, n);
		a->sink(a->argument, data, part);
		stream_consume(s, part);
		a->length += part;
		n -= part;
	}
	return 0;
}

i64 file_read(struct file_system *f, struct text path, u64 offset, u64 length, file_sink *sink, void *argument) {
	u64 words[] = {offset, length};
	struct answer a = {.kind = KIND_FILE_DATA, .take = take_data, .sink = sink, .argument = argument};

	if (!path.length)
		return -EINVAL;
	i64 error = ask(f, KIND_READ_FILE_REQUEST, words, 2, path, nothing, &a);
	return error ? error : (i64)a.length;
}

int file_open(struct file_system *f, struct text path, u32 flags, u64 *handle) {
	u64 words[] = {flags};

	return path.length ? ask_done(f, KIND_OPEN_FILE_REQUEST, words, 1, path, nothing, handle) : -EINVAL;
}

i64 file_read_at(struct file_system *f, u64 handle, u64 offset, u64 length, file_sink *sink, void *argument) {
	u64 words[] = {handle, offset, length};
	struct answer a = {.kind = KIND_FILE_DATA, .take = take_data, .sink = sink, .argument = argument};
	i64 error = ask(f, KIND_READ_REQUEST, words, 3, nothing, nothing, &a);

	return error ? error : (i64)a.length;
}

i64 file_write_at(struct file_system *f, u64 handle, u64 offset, const void *data, u64 n) {
	u64 total = 0;

	do {
		u64 piece = MIN(n - total, (u64)DATA_MAX), written = 0;
		u64 words[] = {handle, offset + total};
		struct answer a = {.kind = KIND_FILE_DONE, .take = take_bytes, .to = &written, .length = 8};
		i64 error = send(f, KIND_WRITE_REQUEST, words, 2, (struct text){(const char *)data + total, piece}, nothing, &a);
		if (error)
			return error;
		total += written;
		if (written != piece)
			return -EPROTO;
	} while (total < n);
	return total;
}

int file_truncate(struct file_system *f, u64 handle, u64 size) {
	u64 words[] = {handle, size};

	return ask_done(f, KIND_TRUNCATE_REQUEST, words, 2, nothing, nothing, NULL);
}

int file_sync(struct file_system *f, u64 handle) {
	return ask_done(f, KIND_SYNC_REQUEST, &handle, 1, nothing, nothing, NULL);
}

int file_close(struct file_system *f, u64 handle) {
	return ask_done(f, KIND_CLOSE_REQUEST, &handle, 1, nothing, nothing, NULL);
}

static int stat(struct file_system *f, u64 handle, struct text path, struct file_info *info) {
	u64 words[] = {handle, 0};
	struct answer a = {.kind = KIND_FILE_INFO, .take = take_bytes, .to = info, .length = sizeof *info};

	return ask(f, KIND_STAT_REQUEST, words, 2, path, nothing, &a);
}

int file_stat(struct file_system *f, struct text path, struct file_info *info) {
	return path.length ? stat(f, 0, path, info) : -EINVAL;
}

int file_stat_handle(struct file_system *f, u64 handle, struct file_info *info) {
	return handle ? stat(f, handle, nothing, info) : -EINVAL;
}

struct page {
	void (*sink)(void *argument, u8 type, struct text name);
	void *argument;
	char last[FILE_NAME_MAX]; /* name, of length bytes; none at first */
	u64 length, names;        /* names: on this page */
};

static int take_page(struct answer *a, struct stream *s, u64 n) {
	struct page *page = a->to;

	while (n) {
		u8 prefix[2]; /* type, length */
		if (n < sizeof prefix || stream_read_full(s, prefix, sizeof prefix))
			return -EPROTO;
		n -= sizeof prefix;
		if (!prefix[1] || prefix[1] > n || stream_read_full(s, page->last, prefix[1]))
			return -EPROTO;
		page->length = prefix[1];
		n -= page->length;
		page->names++;
		page->sink(page->argument, prefix[0], (struct text){page->last, page->length});
	}
	return 0;
}

int file_list(struct file_system *f, struct text path, void (*sink)(void *argument, u8 type, struct text name), void *argument) {
	struct page page = {.sink = sink, .argument = argument};
	u64 words[] = {LIST_MAX | path.length << 32};

	if (!path.length)
		return -EINVAL;
	do {
		struct answer a = {.kind = KIND_FILE_LIST, .take = take_page, .to = &page};
		page.names = 0;
		i64 error = ask(f, KIND_LIST_REQUEST, words, 1, path, (struct text){page.last, page.length}, &a);
		if (error)
			return error;
	} while (page.names);
	return 0;
}

int file_make_folder(struct file_system *f, struct text path) {
	u64 words[] = {MKDIR_PARENTS};

	return path.length ? ask_done(f, KIND_MKDIR_REQUEST, words, 1, path, nothing, NULL) : -EINVAL;
}

int file_remove(struct file_system *f, struct text path) {
	return path.length ? ask_done(f, KIND_REMOVE_REQUEST, NULL, 0, path, nothing, NULL) : -EINVAL;
}

int file_rename(struct file_system *f, struct text from, struct text to) {
	u64 words[] = {from.length};

	return from.length && to.length ? ask_done(f, KIND_RENAME_REQUEST, words, 1, from, to, NULL) : -EINVAL;
}
