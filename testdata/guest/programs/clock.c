/*
 * clock
 *
 * Says what time it is on the host, in a log record, now and once for each byte
 * of the standard input: the wall clock, in nanoseconds since 1970, and the
 * time that has passed since before the start. Ends with the input. Exit code
 * 0, or 1 without a clock.
 */
#include "../proto/stdio.h"

int program_main(void) {
	struct stream *s;
	u8 byte;
	int error = stdio_open(&s);

	if (error || !(boot->features & FEATURE_CLOCK)) {
		log(LOG_ERROR, "no console or no clock");
		return 1;
	}
	do {
		i64 wall = clock_read(CLOCK_WALL), elapsed = clock_read(CLOCK_ELAPSED);
		log(LOG_INFO, "wall %d elapsed %d", wall, elapsed);
	} while (stream_read(s, &byte, 1) == 1);
	stream_close(s);
	return 0;
}
