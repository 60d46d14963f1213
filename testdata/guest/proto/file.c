#include "file.h"
#include "open.h"

enum { KIND_READ_FILE_REQUEST = 0x10, KIND_FILE_DATA };
enum { PATH_MAX = 4095, FRAME_DATA_MAX = 65536 };

int file_system_open(struct stream **s) {
	int error = stream_open(s, 8192, 65536);
	if (error)
		return error;
	error = protocol_open(*s, PROTOCOL_FILE_SYSTEM, NULL, 0, NULL, 0);
	if (error)
		stream_close(*s);
	return error;
}

i64 file_read(struct stream *s, struct text path, u64 offset, u64 length, void (*sink)(void *, const u8 *, u64), void *sink_argument) {
	struct {
		struct frame_header header;
		u64 offset, length;
	} request = {{16 + path.length, KIND_READ_FILE_REQUEST, 0, 1}, offset, length};
	struct {
		struct frame_header header;
		u32 status, reserved;
		u64 offset;
	} answer;
	i64 total = 0;

	if (!path.length || path.length > PATH_MAX)
		return -EINVAL;
	int error = stream_write(s, &request, sizeof request);
	if (!error)
		error = stream_write(s, path.data, path.length);
	if (error)
		return error;
	do {
		u64 fixed = sizeof answer - sizeof answer.header;
		error = stream_read_full(s, &answer, sizeof answer.header + 8);
		if (error)
			return error;
		if (answer.header.kind != KIND_FILE_DATA || answer.header.length < 8)
			return -EPROTO;
		if (answer.status) {
			error = stream_skip(s, answer.header.length - 8);
			return error ? error : -(int)answer.status;
		}
		if (answer.header.length < fixed || answer.header.length > fixed + FRAME_DATA_MAX)
			return -EPROTO;
		error = stream_read_full(s, &answer.offset, sizeof answer.offset);
		if (error)
			return error;
		for (u64 left = answer.header.length - fixed; left;) {
			u8 *data;
			i64 n = stream_peek(s, &data);
			if (n <= 0)
				return n ? n : -EIO;
			n = MIN((u64)n, left);
			sink(sink_argument, data, n);
			stream_consume(s, n);
			left -= n;
			total += n;
		}
	} while (answer.header.flags & FRAME_MORE);
	return total;
}
