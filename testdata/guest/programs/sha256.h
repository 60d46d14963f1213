/* SHA-256, FIPS 180-4. */
#ifndef SHA256_H
#define SHA256_H

#include "../kernel/kernel.h"

struct sha256 {
	u32 state[8];
	u64 length;
	u8 block[64];
};

void sha256_start(struct sha256 *h);
void sha256_add(struct sha256 *h, const u8 *data, u64 n);
/* h must be started again after it. */
void sha256_sum(struct sha256 *h, u8 sum[32]);

#endif
