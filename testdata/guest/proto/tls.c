#include "tls.h"
#include "open.h"

enum { NAME_MAX = 253 };

static u8 *append(u8 *to, struct text t) {
	memcpy(to, t.data, t.length);
	return to + t.length;
}

/* A list of at most one name. */
static u8 *append_alpn(u8 *to, struct text name) {
	if (!name.length)
		return to;
	*to = name.length;
	return append(to + 1, name);
}

static u16 alpn_size(struct text name) {
	return name.length ? name.length + 1 : 0;
}

int tls_connect(struct stream **s, const struct endpoint *e, struct text host, struct text server, struct text alpn, struct tls_session *session) {
	struct {
		struct endpoint endpoint;
		u16 host_length, server_length, alpn_length, reserved;
		u8 rest[2 * NAME_MAX + 1 + ALPN_NAME_MAX];
	} payload = {*e, host.length, server.length, alpn_size(alpn), 0, {0}};
	struct {
		struct endpoint ends[2];
		struct tls_session session;
	} opened;

	if (host.length > NAME_MAX || server.length > NAME_MAX || alpn.length > ALPN_NAME_MAX)
		return -EINVAL;
	u8 *end = append_alpn(append(append(payload.rest, host), server), alpn);
	int error = stream_open(s, TCP_RING_SIZE, TCP_RING_SIZE);
	if (error)
		return error;
	i64 n = protocol_open_up_to(*s, PROTOCOL_TLS_CONNECTION, &payload, end - (u8 *)&payload, &opened, sizeof opened);
	if (n >= 0 && n != (i64)(__builtin_offsetof(__typeof__(opened), session.alpn) + opened.session.alpn_length))
		n = -EPROTO;
	if (n < 0) {
		stream_close(*s);
		return n;
	}
	if (session)
		*session = opened.session;
	return 0;
}

int tls_listen(struct tcp_listener *l, const struct endpoint *where, struct text alpn, u32 outgoing_size, u32 incoming_size) {
	struct {
		struct endpoint endpoint;
		u32 backlog;
		u16 alpn_length, reserved;
		u8 alpn[1 + ALPN_NAME_MAX];
	} payload = {*where, l->backlog, alpn_size(alpn), 0, {0}};

	if (alpn.length > ALPN_NAME_MAX)
		return -EINVAL;
	append_alpn(payload.alpn, alpn);
	u32 length = __builtin_offsetof(__typeof__(payload), alpn) + payload.alpn_length;
	return tcp_listen_by(l, PROTOCOL_TLS_LISTENER, &payload, length, outgoing_size, incoming_size);
}
