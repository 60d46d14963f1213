/*
 * count spin|call|print
 *
 * Every CPU adds to a counter of its own in the array counts, until the host
 * ends the guest; it doesn't hear of a request to stop. Between two steps
 *   spin   it does nothing
 *   call   it asks for the time, which must not go back; else it panics
 *   print  CPU 0 prints the 256 bytes from 0 to 255 by one instruction, and the
 *          others ask for the time
 */
#include "../kernel/kernel.h"

enum mode { SPIN, CALL, PRINT };

/* Each on a cache line of its own. */
static struct {
	volatile u64 n;
	u64 unused[7];
} counts[MAX_CPUS] __attribute__((aligned(64), used));

static u8 line[256];
static enum mode mode;

static void work(void *unused) {
	u32 cpu = this_cpu()->index;
	i64 last = 0;

	(void)unused;
	for (;;) {
		counts[cpu].n++;
		if (mode == SPIN)
			continue;
		if (mode == PRINT && cpu == 0) {
			console_write(line, sizeof line);
			continue;
		}
		i64 now = clock_read(CLOCK_ELAPSED);
		if (now < last)
			panic("the time is %d after %d", now, last);
		last = now;
	}
}

int program_main(void) {
	struct text how = arg(1);

	mode = TEXT_IS(how, "print") ? PRINT : TEXT_IS(how, "call") ? CALL : SPIN;
	for (u32 i = 0; i < sizeof line; i++)
		line[i] = i;
	log(LOG_INFO, "counting");
	for (u32 cpu = 1; cpu < boot->cpu_count; cpu++)
		thread_start(cpu, work, NULL);
	work(NULL);
	return 0;
}
