/* Names and addresses. PROTOCOL.md, section 10. */
#ifndef RESOLVER_H
#define RESOLVER_H

#include "tcp.h"

enum { RESOLVER_ADDRESSES_MAX = 64, RESOLVER_NAME_MAX = 253, RESOLVER_NAMES_BYTES = 4096 };

/*
 * Any number of threads may ask at once. It must stay where it is until the VM
 * ends.
 */
struct resolver {
	struct channel channel;
};

int resolver_open(struct resolver *r);
/*
 * Writes a host's addresses, at most cap; family is 4, 6, or 0 for both. How
 * many there are, 1 at least.
 */
i64 resolve_name(struct resolver *r, struct text name, u8 family, struct endpoint *to, u32 cap);
/* Gives each name of an address to sink. How many there are, 1 at least. */
i64 resolve_address(struct resolver *r, const struct endpoint *address, void (*sink)(struct text name));
void resolver_close(struct resolver *r);

#endif
