/* The functions that gcc calls by itself, and searching. */
#include "base.h"

#undef memcpy
#undef memset
#undef memcmp

void *memcpy(void *to, const void *from, u64 n) {
	void *result = to;
	u64 words = n / 8, rest = n % 8;
	asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words)::"memory");
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest)::"memory");
	return result;
}

void *memmove(void *to, const void *from, u64 n) {
	if ((u64)to - (u64)from >= n)
		return memcpy(to, from, n);
	u8 *t = (u8 *)to + n - 1;
	const u8 *f = (const u8 *)from + n - 1;
	asm volatile("std; rep movsb; cld" : "+D"(t), "+S"(f), "+c"(n)::"memory");
	return to;
}

void *memset(void *to, int byte, u64 n) {
	void *result = to;
	u64 words = n / 8, rest = n % 8;
	asm volatile("rep stosq" : "+D"(to), "+c"(words) : "a"((u8)byte * 0x0101010101010101ul) : "memory");
	asm volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(byte) : "memory");
	return result;
}

int memcmp(const void *a, const void *b, u64 n) {
	const u8 *x = a, *y = b;
	/* Sets the flags to "equal" for n = 0. */
	asm volatile("cmp %%eax, %%eax; repe cmpsb" : "+S"(x), "+D"(y), "+c"(n)::"memory", "cc");
	return x == a ? 0 : x[-1] - y[-1];
}

const void *memory_find(const void *data, u64 n, u8 byte) {
	int found;
	if (!n)
		return NULL;
	asm volatile("repne scasb" : "+D"(data), "+c"(n), "=@ccz"(found) : "a"(byte) : "memory");
	return found ? (const u8 *)data - 1 : NULL;
}

u64 strlen(const char *s) {
	return (const char *)memory_find(s, ~0ul, 0) - s;
}
