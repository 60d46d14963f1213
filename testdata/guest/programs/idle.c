/*
 * idle [--streams N]
 *
 * Opens N pipes (0 without it) that it never uses, says that it idles, and
 * halts until it's asked to stop; exit code 0.
 */
#include "../kernel/kernel.h"

int program_main(void) {
	u64 streams = 0;

	if (text_equal(arg(1), "--streams") && parse_number(arg(2), &streams)) {
		log(LOG_ERROR, "--streams wants a number");
		return 64;
	}
	for (u64 i = 0; i < streams; i++) {
		struct stream *s;
		int error = stream_open(&s, 4096, 4096);
		if (error) {
			log(LOG_ERROR, "pipe %u of %u: error %d", i + 1, streams, -(i64)error);
			return 1;
		}
	}
	log(LOG_INFO, "idle with %u streams", streams);
	wait_for_stop();
	log(LOG_INFO, "asked to stop");
	return 0;
}
