/*
 * hello [NAME…] [--exit N] [--started]
 *
 * Greets each name (the world without one) by a log record, and exits with N,
 * or 0. With --started it says in a record when its first instruction ran, in
 * nanoseconds since 1970.
 */
#include "../kernel/kernel.h"

int program_main(void) {
	u64 code = 0, names = 0;

	for (u32 i = 1; i < boot->arg_count; i++) {
		struct text a = arg(i);
		if (text_equal(a, "--exit")) {
			if (parse_number(arg(++i), &code) || code > 255) {
				log(LOG_ERROR, "--exit wants a number from 0 to 255");
				return 64;
			}
			continue;
		}
		if (text_equal(a, "--started")) {
			u64 since = (first_tsc - boot->wall_tsc) * 1000000000ul / boot->tsc_hz;
			log(LOG_INFO, "first instruction at %u", boot->wall_seconds * 1000000000ul + boot->wall_nanoseconds + since);
			continue;
		}
		log(LOG_INFO, "hello, %t", &a);
		names++;
	}
	if (!names)
		log(LOG_INFO, "hello, world");
	return code;
}
