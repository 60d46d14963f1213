/* The first frame on a pipe: it names the protocol. PROTOCOL.md, section 9. */
#ifndef OPEN_H
#define OPEN_H

#include "../kernel/kernel.h"

enum {
	PROTOCOL_FILE_SYSTEM,
	PROTOCOL_TCP_LISTENER,
	PROTOCOL_TCP_CONNECTION,
	PROTOCOL_UDP,
	PROTOCOL_UNIX_LISTENER,
	PROTOCOL_UNIX_CONNECTION,
	PROTOCOL_RESOLVER,
	PROTOCOL_TLS_CONNECTION,
	PROTOCOL_STDIO,
	PROTOCOL_TLS_LISTENER,
};
enum { OPEN_PAYLOAD_MAX = 1024 };

/*
 * Sends Open with this payload, at most OPEN_PAYLOAD_MAX bytes, and waits for
 * Opened. 0 and Opened's own payload in answer (cap bytes, all of them), or the
 * status that it carries as a negative errno. The stream stays the caller's to
 * close.
 */
int protocol_open(struct stream *s, u16 protocol, const void *payload, u32 length, void *answer, u32 cap);

/*
 * The same for a payload of an Opened that may have any length up to cap:
 * returns how long it is.
 */
i64 protocol_open_up_to(struct stream *s, u16 protocol, const void *payload, u32 length, void *answer, u32 cap);

#endif
