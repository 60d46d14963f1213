/*
 * UNIX sockets below the folder that the user shares for them. PROTOCOL.md,
 * section 10.
 */
#ifndef UNIX_H
#define UNIX_H

#include "tcp.h"

enum { UNIX_PATH_MAX = 312 };

/*
 * A listener for tcp_accept, tcp_serve and tcp_stop_listening. Its bound
 * endpoint and those of its peers are zero. A longer path: -EINVAL.
 */
int unix_listen(struct tcp_listener *l, struct text path, u32 outgoing_size, u32 incoming_size);
int unix_connect(struct stream **s, struct text path);

#endif
