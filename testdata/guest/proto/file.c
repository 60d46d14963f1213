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

int file_system_open(struct stream **s) {
	int error = stream_open(s, 8192, 65536);
	if (error)
		return error;
	error = protocol_open(*s, PROTOCOL_FILE_SYSTEM, NULL, 0, NULL, 0);
	if (error)
		stream_close(*s);
	return error;
}

/* Sends a request: count words, then one path or two. */
static int request(struct stream *s, u16 kind, const u64 *words, u32 count, struct text path, struct text other) {
	struct {
		struct frame_header header;
		u64 words[3];
	} frame = {.header = {8 * count + path.length + other.length, kind, 0, 1}};

	if (path.length + other.length > PATHS_MAX)
		return -EINVAL;
	memcpy(frame.words, words, 8 * count);
	int error = stream_write(s, &frame, sizeof frame.header + 8 * count);
	if (!error)
		error = stream_write(s, path.data, path.length);
	if (!error)
		error = stream_write(s, other.data, other.length);
	return error;
}

/* Reads an answer up to its status, and if that is an error to its end. How many bytes follow. */
static i64 answer(struct stream *s, u16 kind, u16 *flags) {
	struct {
		struct frame_header header;
		u32 status, reserved;
	} a;
	int error = stream_read_full(s, &a, sizeof a);

	if (error)
		return error;
	if (a.header.kind != kind || a.header.length < 8)
		return -EPROTO;
	if (flags)
		*flags = a.header.flags;
	if (!a.status)
		return a.header.length - 8;
	error = stream_skip(s, a.header.length - 8);
	return error ? error : -(int)a.status;
}

/* Reads a FileDone. */
static int done(struct stream *s, u64 *value) {
	u64 ignored;
	i64 n = answer(s, KIND_FILE_DONE, NULL);

	if (n < 0)
		return n;
	return n == 8 ? stream_read_full(s, value ? value : &ignored, 8) : -EPROTO;
}

/* Reads FileData to the last. */
static i64 receive(struct stream *s, file_sink *sink, void *argument) {
	i64 total = 0;
	u16 flags;

	do {
		u64 offset;
		i64 left = answer(s, KIND_FILE_DATA, &flags);
		if (left < 0)
			return left;
		if (left < 8 || left > 8 + DATA_MAX)
			return -EPROTO;
		int error = stream_read_full(s, &offset, sizeof offset);
		if (error)
			return error;
		for (left -= 8; left;) {
			u8 *data;
			i64 n = stream_peek(s, &data);
			if (n <= 0)
				return n ? n : -EIO;
			n = MIN(n, left);
			sink(argument, data, n);
			stream_consume(s, n);
			left -= n;
			total += n;
		}
	} while (flags & FRAME_MORE);
	return total;
}

i64 file_read(struct stream *s, struct text path, u64 offset, u64 length, file_sink *sink, void *argument) {
	u64 words[] = {offset, length};

	if (!path.length)
		return -EINVAL;
	int error = request(s, KIND_READ_FILE_REQUEST, words, 2, path, nothing);
	return error ? error : receive(s, sink, argument);
}

int file_open(struct stream *s, struct text path, u32 flags, u64 *handle) {
	u64 words[] = {flags};

	if (!path.length)
		return -EINVAL;
	int error = request(s, KIND_OPEN_FILE_REQUEST, words, 1, path, nothing);
	return error ? error : done(s, handle);
}

i64 file_read_at(struct stream *s, u64 handle, u64 offset, u64 length, file_sink *sink, void *argument) {
	u64 words[] = {handle, offset, length};
	int error = request(s, KIND_READ_REQUEST, words, 3, nothing, nothing);

	return error ? error : receive(s, sink, argument);
}

i64 file_write_at(struct stream *s, u64 handle, u64 offset, const void *data, u64 n) {
	u64 total = 0;

	do {
		u64 piece = MIN(n - total, (u64)DATA_MAX), written = 0;
		struct {
			struct frame_header header;
			u64 handle, offset;
		} frame = {{16 + piece, KIND_WRITE_REQUEST, 0, 1}, handle, offset + total};
		int error = stream_write(s, &frame, sizeof frame);
		if (!error)
			error = stream_write(s, (const u8 *)data + total, piece);
		if (!error)
			error = done(s, &written);
		if (error)
			return error;
		total += written;
		if (written != piece)
			return -EPROTO;
	} while (total < n);
	return total;
}

int file_truncate(struct stream *s, u64 handle, u64 size) {
	u64 words[] = {handle, size};
	int error = request(s, KIND_TRUNCATE_REQUEST, words, 2, nothing, nothing);

	return error ? error : done(s, NULL);
}

static int handle_request(struct stream *s, u16 kind, u64 handle) {
	int error = request(s, kind, &handle, 1, nothing, nothing);
	return error ? error : done(s, NULL);
}

int file_sync(struct stream *s, u64 handle) {
	return handle_request(s, KIND_SYNC_REQUEST, handle);
}

int file_close(struct stream *s, u64 handle) {
	return handle_request(s, KIND_CLOSE_REQUEST, handle);
}

int file_stat(struct stream *s, struct text path, struct file_info *info) {
	u64 words[] = {0, 0};

	if (!path.length)
		return -EINVAL;
	int error = request(s, KIND_STAT_REQUEST, words, 2, path, nothing);
	if (error)
		return error;
	i64 n = answer(s, KIND_FILE_INFO, NULL);
	if (n < 0)
		return n;
	return n == sizeof *info ? stream_read_full(s, info, sizeof *info) : -EPROTO;
}

int file_list(struct stream *s, struct text path, void (*sink)(void *argument, u8 type, struct text name), void *argument) {
	static const u64 limit = LIST_MAX;
	char last[FILE_NAME_MAX];
	u64 length = 0;

	if (!path.length)
		return -EINVAL;
	for (;;) {
		u64 words[] = {limit | path.length << 32};
		int error = request(s, KIND_LIST_REQUEST, words, 1, path, (struct text){last, length});
		if (error)
			return error;
		i64 left = answer(s, KIND_FILE_LIST, NULL);
		if (left <= 0)
			return left;
		while (left) {
			u8 prefix[2];
			error = stream_read_full(s, prefix, sizeof prefix);
			if (error)
				return error;
			length = prefix[1];
			left -= sizeof prefix + length;
			if (!length || left < 0)
				return -EPROTO;
			error = stream_read_full(s, last, length);
			if (error)
				return error;
			sink(argument, prefix[0], (struct text){last, length});
		}
	}
}

int file_make_folder(struct stream *s, struct text path) {
	u64 words[] = {MKDIR_PARENTS};

	if (!path.length)
		return -EINVAL;
	int error = request(s, KIND_MKDIR_REQUEST, words, 1, path, nothing);
	return error ? error : done(s, NULL);
}

int file_remove(struct stream *s, struct text path) {
	if (!path.length)
		return -EINVAL;
	int error = request(s, KIND_REMOVE_REQUEST, NULL, 0, path, nothing);
	return error ? error : done(s, NULL);
}

int file_rename(struct stream *s, struct text from, struct text to) {
	u64 words[] = {from.length};

	if (!from.length || !to.length)
		return -EINVAL;
	int error = request(s, KIND_RENAME_REQUEST, words, 1, from, to);
	return error ? error : done(s, NULL);
}
