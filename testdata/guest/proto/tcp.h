/* TCP over streams. */
#ifndef TCP_H
#define TCP_H

#include "../kernel/kernel.h"

/* As it goes over the wire. */
struct endpoint {
	u8 family, reserved; /* 4, 6, or 0: see tcp_connect */
	u16 port;
	u32 scope;
	u8 address[16];
};

enum { ENDPOINT_TEXT = 64 };

/*
 * Reads ADDR:PORT, with IPv6 addresses in brackets; -EINVAL. If host isn't
 * NULL, anything else before the last colon is a name: the family is 0 then and
 * *host the name.
 */
int endpoint_parse(struct text s, struct endpoint *e, struct text *host);
/* Writes at most ENDPOINT_TEXT bytes, in the form that endpoint_parse reads. */
u64 endpoint_format(char *to, const struct endpoint *e);
/* The same for an address alone, without brackets; the port is 0. */
int address_parse(struct text s, struct endpoint *e);
u64 address_format(char *to, const struct endpoint *e);

enum { TCP_RING_SIZE = 65536 };

/*
 * What one may choose of a connection's socket, as it goes over the wire; all 0
 * are the defaults.
 */
struct tcp_options {
	u16 flags;      /* TCP_DELAY */
	u16 keep_alive; /* seconds before and between probes, or TCP_KEEP_ALIVE_OFF */
};
enum { TCP_DELAY = 1, TCP_KEEP_ALIVE_OFF = 0xFFFF };

struct tcp_ends {
	struct endpoint local, peer;
};

struct tcp_listener {
	/* The caller's, before it listens; 0 are the defaults. */
	u32 backlog;
	struct tcp_options options; /* of each connection; not of TLS */

	struct channel channel;
	struct endpoint bound;
	u32 outgoing_size, incoming_size; /* of each connection's rings */
};

/*
 * The listener must stay where it is. The sizes are those of each connection's
 * rings.
 */
int tcp_listen(struct tcp_listener *l, const struct endpoint *where, u32 outgoing_size, u32 incoming_size);
/*
 * The same by a protocol whose connections are accepted as TCP's are, with its
 * payload of Open.
 */
int tcp_listen_by(struct tcp_listener *l, u16 protocol, const void *payload, u32 length, u32 outgoing_size, u32 incoming_size);
/*
 * Waits for a connection, which is homed on the calling CPU; any number of
 * threads may wait. *s is set before it does: another thread that closes that
 * stream's reader ends the wait with -ECANCELED. ends may be NULL.
 */
int tcp_accept(struct tcp_listener *l, struct stream **s, struct tcp_ends *ends);
/*
 * Threads that wait in tcp_accept fail with -ECONNRESET. By then the port is
 * free.
 */
void tcp_stop_listening(struct tcp_listener *l);

/* Connects to e, or where its family is 0, to the host of this name. */
int tcp_connect(struct stream **s, const struct endpoint *e, struct text host);
/* The same with options; ends may be NULL. */
int tcp_connect_with(struct stream **s, const struct endpoint *e, struct text host, struct tcp_options options, struct tcp_ends *ends);

/*
 * Serves every connection in a thread of its own, spread over all CPUs. The
 * stream is closed after serve, or reset if serve gives an error; serve itself
 * may close a direction, not both. Returns at once.
 */
int tcp_serve(struct tcp_listener *l, int (*serve)(struct stream *s, const struct endpoint *peer));

/*
 * The whole of a program that serves TCP by tcp_serve: its arguments are
 * ADDR:PORT, and, if one of the sizes is 0, RING, which is that size. It logs
 * where it listens, and ends when the monitor asks it to. The exit code.
 */
int tcp_server(int (*serve)(struct stream *s, const struct endpoint *peer), u32 outgoing_size, u32 incoming_size);

#endif
