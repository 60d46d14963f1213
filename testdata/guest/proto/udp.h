/* UDP over streams: each frame is a datagram. */
#ifndef UDP_H
#define UDP_H

#include "tcp.h"

/* Rings with room for a largest datagram and more. */
enum { UDP_RING_SIZE = 131072, UDP_DATAGRAM_MAX = 65535 };

/* One thread may send while another receives. */
struct udp_socket {
	struct stream *stream;
	struct endpoint local, peer;
};

struct udp_datagram {
	/*
	 * The sender. Of an error: the destination of the datagram that failed,
	 * family 0 if that isn't known.
	 */
	struct endpoint from;
	/*
	 * The address of the socket that the datagram came to, from which an
	 * answer comes. An error doesn't set it.
	 */
	struct endpoint local;
	u32 size;             /* of the datagram; what is received is shorter if it had no room */
	u32 dropped;          /* datagrams that the socket has lost so far */
	u64 request;          /* of an error: udp_send's, or 0 if the network gave the datagram back */
};

/*
 * Binds to an address and a port, 0 for any, with rings of this size. One that
 * is too small for a datagram cuts it.
 */
int udp_bind_with(struct udp_socket *s, const struct endpoint *local, u32 ring_size);
/* The same with rings of UDP_RING_SIZE. */
int udp_bind(struct udp_socket *s, const struct endpoint *local);
/* Sends to this peer, and hears it only. */
int udp_connect(struct udp_socket *s, const struct endpoint *peer);
/*
 * Sends a datagram, to the peer if to is NULL. Whether it could be sent,
 * udp_receive says: nothing if so. request isn't 0.
 */
int udp_send(struct udp_socket *s, u64 request, const struct endpoint *to, const void *data, u64 n);
/*
 * The same, from one of the socket's local addresses: as a datagram's local has
 * it.
 */
int udp_send_from(struct udp_socket *s, u64 request, const struct endpoint *to, const struct endpoint *from, const void *data, u64 n);
/*
 * Waits for a datagram: its length, cut at cap; -EPIPE at the end; another
 * errno is that of a datagram that was sent, and ends nothing.
 */
i64 udp_receive(struct udp_socket *s, struct udp_datagram *d, void *to, u64 cap);
void udp_close(struct udp_socket *s);

#endif
