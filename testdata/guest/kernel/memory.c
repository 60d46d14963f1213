/* Free RAM in power-of-two blocks. */
#include "internal.h"

enum { PAGE = 4096, SMALLEST = 5 };

static struct spinlock lock;
static u8 *next, *end;
static struct block {
	struct block *next;
} *free_blocks[40];

void memory_init(void) {
	next = virtual(boot->free_base);
	end = next + boot->free_size;
}

static u32 class_of(u64 size) {
	return size <= 1 << SMALLEST ? SMALLEST : 64 - __builtin_clzl(size - 1);
}

/*
 * RAM is zero at the start, so only blocks that were in use before are cleared.
 */
void *memory_alloc(u64 size) {
	u32 class = class_of(size);
	u64 block = 1ul << class;
	void *p;

	spin_lock(&lock);
	p = free_blocks[class];
	if (p) {
		free_blocks[class] = free_blocks[class]->next;
		spin_unlock(&lock);
		return memset(p, 0, size);
	}
	u8 *start = (u8 *)(((u64)next + MIN(block, PAGE) - 1) & -MIN(block, PAGE));
	if (start <= end && block <= (u64)(end - start)) {
		next = start + block;
		p = start;
	}
	spin_unlock(&lock);
	return p;
}

void memory_free(void *p, u64 size) {
	u32 class = class_of(size);
	struct block *b = p;

	spin_lock(&lock);
	b->next = free_blocks[class];
	free_blocks[class] = b;
	spin_unlock(&lock);
}
