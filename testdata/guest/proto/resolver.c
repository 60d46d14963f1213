#include "resolver.h"
#include "open.h"

enum { KIND_RESOLVE_NAME = 0x40, KIND_RESOLVE_ADDRESS, KIND_ADDRESSES, KIND_NAMES };

int resolver_open(struct resolver *r) {
	struct stream *s;
	int error = stream_open(&s, 4096, 8192);

	if (error)
		return error;
	error = protocol_open(s, PROTOCOL_RESOLVER, NULL, 0, NULL, 0);
	if (!error)
		error = channel_start(&r->channel, s);
	if (error)
		stream_close(s);
	return error;
}

/* The bytes of an answer after its status. */
static i64 entries(i64 n, u32 status) {
	if (n < 0)
		return n;
	if (n < 8)
		return -EPROTO;
	return status ? -(i64)status : n - 8;
}

i64 resolve_name(struct resolver *r, struct text name, u8 family, struct endpoint *to, u32 cap) {
	struct {
		struct frame_header header;
		u64 family;
		char name[RESOLVER_NAME_MAX];
	} request = {.header = {8 + name.length, KIND_RESOLVE_NAME, 0, 0}, .family = family};
	struct {
		u32 status, reserved;
		struct endpoint addresses[RESOLVER_ADDRESSES_MAX];
	} answer;

	if (!name.length || name.length > sizeof request.name)
		return -EINVAL;
	memcpy(request.name, name.data, name.length);
	i64 n = channel_call(&r->channel, &request.header, KIND_ADDRESSES, &answer, sizeof answer);
	n = entries(n, answer.status);
	if (n < 0)
		return n;
	if (!n || n % sizeof *to)
		return -EPROTO;
	memcpy(to, answer.addresses, MIN((u64)n, cap * sizeof *to));
	return n / sizeof *to;
}

i64 resolve_address(struct resolver *r, const struct endpoint *address, void (*sink)(struct text name)) {
	struct {
		struct frame_header header;
		struct endpoint address;
	} request = {{sizeof request.address, KIND_RESOLVE_ADDRESS, 0, 0}, *address};
	struct {
		u32 status, reserved;
		u8 names[RESOLVER_NAMES_BYTES];
	} answer;
	i64 n = channel_call(&r->channel, &request.header, KIND_NAMES, &answer, sizeof answer), count = 0;

	n = entries(n, answer.status);
	for (i64 at = 0; at < n; count++) {
		u8 length = answer.names[at];
		if (!length || at + 1 + length > n)
			return -EPROTO;
		sink((struct text){(char *)answer.names + at + 1, length});
		at += 1 + length;
	}
	return n < 0 ? n : count ? count : -EPROTO;
}

void resolver_close(struct resolver *r) {
	channel_close(&r->channel);
}
