/* The buddy allocator that monitor and guest share. */
#include "rpc.h"

struct option {
	u64 some, value;
};

struct raw {
	u64 base, ram_size, inner, words, counts, count_number;
};

enum { LEVELS = 64, SMALLEST = 12 };

struct inner {
	u64 references, used, raw_size, total_size, max_alignment;
	u32 first, end;
	u64 requests[LEVELS];
	struct spinlock lock;
	struct option lists[LEVELS];
	u64 bitmap[];
};
_Static_assert(__builtin_offsetof(struct inner, lock) == 560, "layout");
_Static_assert(__builtin_offsetof(struct inner, bitmap) == 1592, "layout");

/* In the first bytes of a free block. */
struct node {
	struct option previous, next;
};

static struct raw *raw;
static struct inner *inner;
static u64 *counts;

void allocator_init(u64 raw_offset) {
	raw = at(raw_offset);
	raw->base = (u64)at(0);
	inner = at(raw->inner);
	counts = at(raw->counts);
	assert_that(raw->count_number == raw->ram_size / 4096, "a reference count for each page");
	assert_that(inner->first == SMALLEST && inner->end <= LEVELS, "levels");
	assert_that(inner->total_size == 1ul << (inner->end - 1), "the top level is all of it");
	assert_that(raw->words == (1ul << (inner->end - SMALLEST - 6)) + 5, "words of the bitmap");
}

u64 ram_size(void) { return raw->ram_size; }

static u32 level_of(u64 size) {
	u32 level = SMALLEST;
	while (1ul << level < size)
		level++;
	return level;
}

static struct node *node(u32 level, u64 index) { return at(index << level); }

static u64 *bit_word(u32 level, u64 index) {
	u32 inverse = inner->end - 1 - level;
	u64 word = (inverse <= 6 ? inverse : (1ul << (inverse - 6)) + 5) + index / 64;
	assert_that(word < raw->words, "a bit lies in the bitmap");
	return &inner->bitmap[word];
}

static int is_free(u32 level, u64 index) { return *bit_word(level, index) >> index % 64 & 1; }

static void link(u32 level, u64 index) {
	struct option *head = &inner->lists[level];

	*node(level, index) = (struct node){{0, 0}, *head};
	if (head->some)
		node(level, head->value)->previous = (struct option){1, index};
	*head = (struct option){1, index};
	*bit_word(level, index) |= 1ul << index % 64;
}

static void unlink(u32 level, u64 index) {
	struct node *n = node(level, index);

	assert_that(is_free(level, index), "what is taken was free");
	if (n->previous.some)
		node(level, n->previous.value)->next = n->next;
	else
		inner->lists[level] = n->next;
	if (n->next.some)
		node(level, n->next.value)->previous = n->previous;
	*bit_word(level, index) &= ~(1ul << index % 64);
}

static void release(u32 level, u64 index) {
	assert_that(!is_free(level, index), "what is freed was taken");
	while (level + 1 < inner->end && is_free(level, index ^ 1)) {
		unlink(level, index ^ 1);
		level++;
		index /= 2;
	}
	link(level, index);
}

/* The head of the list, or the upper half of a block of the level above. */
static int take(u32 level, u64 *index) {
	if (level >= inner->end)
		return 0;
	if (inner->lists[level].some) {
		*index = inner->lists[level].value;
		unlink(level, *index);
		return 1;
	}
	if (!take(level + 1, index))
		return 0;
	release(level, 2 * *index);
	*index = 2 * *index + 1;
	return 1;
}

void *block_alloc(u64 size) {
	u32 level = level_of(size);
	u64 index;

	spin_lock(&inner->lock);
	inner->requests[level]++;
	int found = take(level, &index);
	if (found) {
		inner->used += 1ul << level;
		counts[index << level >> SMALLEST] = 0;
	}
	spin_unlock(&inner->lock);
	if (!found)
		panic("out of memory: %u bytes", size);
	return at(index << level);
}

void block_free(void *block, u64 size) {
	u32 level = level_of(size);
	u64 offset = offset_of(block);

	assert_that(offset % (1ul << level) == 0, "a block is aligned to its size");
	spin_lock(&inner->lock);
	assert_that(counts[offset >> SMALLEST] == 0, "what is freed has no references");
	inner->requests[level]++;
	release(level, offset >> level);
	inner->used -= 1ul << level;
	spin_unlock(&inner->lock);
}

struct allocator_state allocator_state(void) {
	struct allocator_state s = {0};
	u64 free = 0;

	spin_lock(&inner->lock);
	for (u32 level = SMALLEST; level < inner->end; level++) {
		u64 in_list = 0, in_bitmap = 0;
		struct option previous = {0, 0};
		for (struct option o = inner->lists[level]; o.some; o = node(level, o.value)->next) {
			struct node *n = node(level, o.value);
			assert_that(is_free(level, o.value), "what is in a list is free");
			assert_that(n->previous.some == previous.some && (!previous.some || n->previous.value == previous.value), "links");
			/* A sum: lists have no order that matters. */
			s.hash += ((u64)level << 56 | o.value) * 0x9E3779B97F4A7C15ul ^ level;
			in_list++;
			previous = o;
		}
		u64 words = ((1ul << (inner->end - 1 - level)) + 63) >> 6;
		for (u64 i = 0; i < words; i++)
			for (u64 bits = *bit_word(level, 64 * i); bits; bits &= bits - 1)
				in_bitmap++;
		assert_that(in_list == in_bitmap, "lists and bitmap agree");
		s.blocks += in_list;
		free += in_list << level;
	}
	s.used = inner->used;
	spin_unlock(&inner->lock);
	assert_that(free + s.used == 1ul << (inner->end - 1), "what is used and what is free is all");
	return s;
}

int allocator_is_again(const struct allocator_state *before) {
	struct allocator_state now;
	u64 start = this_cpu()->timer_ticks;

	do {
		wait_until(__atomic_load_n(&inner->used, __ATOMIC_RELAXED) == before->used || this_cpu()->timer_ticks - start > 5000);
		now = allocator_state();
		if (now.used == before->used && now.blocks == before->blocks && now.hash == before->hash)
			return 1;
	} while (this_cpu()->timer_ticks - start <= 5000);
	log(LOG_ERROR, "allocator: %u bytes used in %u free blocks before, %u in %u now", before->used, before->blocks, now.used, now.blocks);
	return 0;
}
