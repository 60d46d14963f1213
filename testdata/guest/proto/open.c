#include "open.h"

enum { KIND_OPEN = 3, KIND_OPENED = 4 };

i64 protocol_open_up_to(struct stream *s, u16 protocol, const void *payload, u32 length, void *answer, u32 cap) {
	struct {
		struct frame_header header;
		u16 protocol, reserved0;
		u32 reserved1;
		u8 payload[OPEN_PAYLOAD_MAX];
	} open = {.header = {.length = 8 + length, .kind = KIND_OPEN}, .protocol = protocol};
	struct {
		struct frame_header header;
		u32 status, reserved;
	} opened;

	if (length > sizeof open.payload)
		return -EINVAL;
	memcpy(open.payload, payload, length);
	int error = stream_write(s, &open, sizeof open.header + open.header.length);
	if (!error)
		error = stream_read_full(s, &opened, sizeof opened);
	if (error)
		return error;
	if (opened.header.kind != KIND_OPENED || opened.header.length < 8)
		return -EPROTO;
	if (opened.status)
		return -(int)opened.status;
	u32 n = opened.header.length - 8;
	if (n > cap)
		return -EPROTO;
	error = stream_read_full(s, answer, n);
	return error ? error : (i64)n;
}

int protocol_open(struct stream *s, u16 protocol, const void *payload, u32 length, void *answer, u32 cap) {
	i64 n = protocol_open_up_to(s, protocol, payload, length, answer, cap);

	if (n >= 0 && n != cap)
		return -EPROTO;
	return n < 0 ? n : 0;
}
