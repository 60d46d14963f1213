/*
 * TLS over streams: the monitor does it, what is read and written here is
 * plain.
 */
#ifndef TLS_H
#define TLS_H

#include "tcp.h"

enum { ALPN_NAME_MAX = 255 };

/* What the handshake has settled. */
struct tls_session {
	u16 version; /* as TLS writes it: 0x0303 is 1.2, 0x0304 is 1.3 */
	u16 alpn_length;
	u32 reserved;
	char alpn[ALPN_NAME_MAX]; /* the chosen protocol above TLS, of alpn_length bytes */
};

/*
 * Connects as tcp_connect does, to a server whose certificate is for the name
 * server, or if that is empty, for host, or the address. alpn is empty, or a
 * name that is offered. session may be NULL.
 */
int tls_connect(struct stream **s, const struct endpoint *e, struct text host, struct text server, struct text alpn, struct tls_session *session);

/*
 * A tcp_listen whose connections do TLS: tcp_accept, tcp_serve and
 * tcp_stop_listening go on from there. alpn as above.
 */
int tls_listen(struct tcp_listener *l, const struct endpoint *where, struct text alpn, u32 outgoing_size, u32 incoming_size);

#endif
