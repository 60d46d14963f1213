/*
 * memclr BYTES
 *
 * Writes to each page of so many bytes, clears them by the monitor when it is
 * asked to stop, looks whether they are zero, and says each in a log record.
 * The second request to stop, or the host, ends it. Exit code 0, or 1 if
 * something isn't zero.
 */
#include "../kernel/kernel.h"

int program_main(void) {
	u64 size = 0;
	u8 *p = NULL;

	if (parse_number(arg(1), &size) || !(p = memory_alloc(size))) {
		log(LOG_ERROR, "memclr BYTES, and RAM for them");
		return 64;
	}
	for (u64 at = 0; at < size; at += 4096)
		p[at] = 1;
	log(LOG_INFO, "written");
	wait_for_stop();
	memory_clear(p, size);
	log(LOG_INFO, "cleared");
	stop_requested = 0;
	wait_for_stop();
	for (u64 at = 0; at < size; at += 4096)
		if (p[at])
			return 1;
	return 0;
}
