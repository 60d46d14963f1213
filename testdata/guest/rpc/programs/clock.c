/*
 * rpc-clock ADDRESS PORT [CONNECTIONS]
 *
 * Sends the time stamp counter, as a decimal number, on each connection.
 */
#include "../../kernel/format.h"
#include "../kernel/rpc.h"

static void answer(struct pipe *stream) {
	char text[24];
	u32 low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	stream_send(stream, text, format(text, sizeof text, "%u", (u64)high << 32 | low));
}

i32 program_main(void) { return serve(answer); }
