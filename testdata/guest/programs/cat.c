/*
 * cat PATH…
 *
 * Prints files of the shared folder to the console. Exit code 1 and a log
 * record for each that can't be read.
 */
#include "../proto/file.h"

static void print(void *unused, const u8 *data, u64 n) {
	(void)unused;
	console_write(data, n);
}

int program_main(void) {
	static struct file_system files;
	int result = 0;

	if (boot->arg_count < 2) {
		log(LOG_ERROR, "usage: cat PATH...");
		return 64;
	}
	int error = file_system_open(&files);
	if (error) {
		log(LOG_ERROR, "file system: error %d", -(i64)error);
		return 1;
	}
	for (u32 i = 1; i < boot->arg_count; i++) {
		struct text path = arg(i);
		i64 n = file_read(&files, path, 0, ~0ul, print, NULL);
		if (n < 0) {
			log(LOG_ERROR, "%t: error %d", &path, -n);
			result = 1;
		}
	}
	file_system_close(&files);
	return result;
}
