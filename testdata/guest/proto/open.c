#include "open.h"

enum { KIND_OPEN = 3, KIND_OPENED = 4 };

int protocol_open(struct stream *s, u16 protocol, const void *payload, u32 length, void *answer, u32 cap) {
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
	if (opened.header.length != 8 + cap)
		return -EPROTO;
	return stream_read_full(s, answer, cap);
}
