/*
 * rpc-smp ROUNDS [PORT]
 *
 * All CPUs at once take and free blocks of many sizes, ask on the control pipe,
 * and open connections to a port of the local machine at which nobody listens
 * (1 by default). In the end the allocator must be as it was: exit code 0, or
 * 1.
 */
#include "../kernel/rpc.h"

enum { BLOCKS = 8, LARGE = 1 << 20 };

static u64 rounds, port = 1;

static u64 next_random(u64 *state) {
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void blocks(u64 *random) {
	u64 *block[BLOCKS], size[BLOCKS];

	for (u32 i = 0; i < BLOCKS; i++) {
		size[i] = 1 + next_random(random) % (4096ul << next_random(random) % 7);
		block[i] = block_alloc(size[i]);
		*block[i] = (u64)block[i] ^ this_cpu()->index;
	}
	for (u32 i = 0; i < BLOCKS; i++) {
		assert_that(*block[i] == ((u64)block[i] ^ this_cpu()->index), "a block belongs to one CPU");
		block_free(block[i], size[i]);
	}
}

static void large_block(void) {
	u8 *block = block_alloc(LARGE);

	hypercall_memset(block, 0x5A, LARGE);
	assert_that(block[0] == 0x5A && block[LARGE - 1] == 0x5A, "MEMSET");
	hypercall_memclr(block, LARGE / 2);
	assert_that(!block[0] && !block[LARGE / 2 - 1] && block[LARGE / 2] == 0x5A, "MEMCLR");
	block_free(block, LARGE);
}

static void connection(void) {
	struct pipe p;
	u8 byte = 0;

	tcp_connect(&p, (struct text){"127.0.0.1", 9}, port);
	assert_that(stream_send(&p, &byte, 1) == 1, "what is sent to nobody is taken");
	assert_that(stream_receive(&p, &byte, 1) == 0, "nothing comes from nobody");
	stream_close(&p);
}

/* The guest leaves without a Close. */
static void abandoned(void) {
	struct pipe p;

	tcp_connect(&p, (struct text){"127.0.0.1", 9}, port);
	pipe_drop(&p);
}

static void work(void) {
	u64 random = 0x9E3779B97F4A7C15ul + this_cpu()->index;

	for (u64 i = 0; i < rounds; i++) {
		blocks(&random);
		if (i % 4 == 0)
			connection();
		if (i % 8 == 1)
			abandoned();
		if (i % 16 == 2)
			large_block();
	}
	log(LOG_INFO, "CPU %u: %u rounds, %u timer interrupts", (u64)this_cpu()->index, rounds, this_cpu()->timer_ticks);
}

i32 program_main(void) {
	struct allocator_state before = allocator_state();

	if (parse_number(arg(1), &rounds) || (arg_count > 2 && parse_number(arg(2), &port))) {
		log(LOG_ERROR, "wanted: ROUNDS [PORT]");
		return 64;
	}
	run_everywhere(work);
	if (!allocator_is_again(&before))
		return 1;
	log(LOG_INFO, "allocator as before: %u bytes used, %u free blocks", before.used, before.blocks);
	return 0;
}
