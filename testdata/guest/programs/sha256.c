#include "sha256.h"

static const u32 constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline u32 rotate(u32 x, int n) {
	return x >> n | x << (32 - n);
}

/* The names move on by one from round to round, so that no value has to. */
#define ROUND(a, b, c, d, e, f, g, z, i)                                                                            \
	do {                                                                                                        \
		z += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (g ^ (e & (f ^ g))) + constants[i] + w[i];     \
		d += z;                                                                                              \
		z += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));                     \
	} while (0)

static void add_block(struct sha256 *h, const u8 *data) {
	u32 w[64];

	for (int i = 0; i < 16; i++) {
		u32 word;
		memcpy(&word, data + 4 * i, 4);
		w[i] = __builtin_bswap32(word);
	}
	for (int i = 16; i < 64; i++) {
		u32 a = w[i - 15], b = w[i - 2];
		w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
	}
	u32 a = h->state[0], b = h->state[1], c = h->state[2], d = h->state[3];
	u32 e = h->state[4], f = h->state[5], g = h->state[6], z = h->state[7];
	for (int i = 0; i < 64; i += 8) {
		ROUND(a, b, c, d, e, f, g, z, i);
		ROUND(z, a, b, c, d, e, f, g, i + 1);
		ROUND(g, z, a, b, c, d, e, f, i + 2);
		ROUND(f, g, z, a, b, c, d, e, i + 3);
		ROUND(e, f, g, z, a, b, c, d, i + 4);
		ROUND(d, e, f, g, z, a, b, c, i + 5);
		ROUND(c, d, e, f, g, z, a, b, i + 6);
		ROUND(b, c, d, e, f, g, z, a, i + 7);
	}
	h->state[0] += a;
	h->state[1] += b;
	h->state[2] += c;
	h->state[3] += d;
	h->state[4] += e;
	h->state[5] += f;
	h->state[6] += g;
	h->state[7] += z;
}

void sha256_start(struct sha256 *h) {
	static const u32 start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	memcpy(h->state, start, sizeof start);
	h->length = 0;
}

void sha256_add(struct sha256 *h, const u8 *data, u64 n) {
	u64 used = h->length % sizeof h->block;

	h->length += n;
	if (used) {
		u64 part = MIN(n, sizeof h->block - used);
		memcpy(h->block + used, data, part);
		data += part;
		n -= part;
		if (used + part < sizeof h->block)
			return;
		add_block(h, h->block);
	}
	for (; n >= sizeof h->block; n -= sizeof h->block, data += sizeof h->block)
		add_block(h, data);
	memcpy(h->block, data, n);
}

void sha256_sum(struct sha256 *h, u8 sum[32]) {
	static const u8 padding[64] = {0x80};
	u64 bits = __builtin_bswap64(8 * h->length);

	sha256_add(h, padding, 1 + (119 - h->length % 64) % 64);
	sha256_add(h, (u8 *)&bits, sizeof bits);
	for (int i = 0; i < 8; i++) {
		u32 word = __builtin_bswap32(h->state[i]);
		memcpy(sum + 4 * i, &word, 4);
	}
}
