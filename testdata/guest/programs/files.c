/*
 * files OPERATION ARGUMENT… [, OPERATION ARGUMENT…]…
 *
 * Works on the folders that the user shares, one operation after the other:
 *   read PATH            write PATH TEXT      append PATH TEXT     create PATH TEXT (it must not exist)
 *   truncate PATH SIZE   stat PATH            list PATH
 *   mkdir PATH           remove PATH          rename PATH PATH
 * Output goes to the console. Exit code 0, or at the first operation that fails 1 and a log record with its errno.
 */
#include "../proto/file.h"

enum { USAGE = -1000000 }; /* no errno */

static struct stream *files;

static void print(void *unused, const u8 *data, u64 n) {
	(void)unused;
	console_write(data, n);
}

static void print_name(void *unused, u8 type, struct text name) {
	(void)unused;
	console_write(name.data, name.length);
	console_write(type == 4 ? "/\n" : "\n", type == 4 ? 2 : 1);
}

static void print_number(u64 n, char end) {
	char digits[24];
	u32 at = sizeof digits;

	digits[--at] = end;
	do
		digits[--at] = '0' + n % 10;
	while (n /= 10);
	console_write(digits + at, sizeof digits - at);
}

/* Opens, does one thing, and closes. */
static i64 with_file(struct text path, u32 flags, i64 (*work)(u64 handle, struct text argument), struct text argument) {
	u64 handle;
	int error = file_open(files, path, flags, &handle);

	if (error)
		return error;
	i64 result = work(handle, argument);
	error = file_close(files, handle);
	return result < 0 ? result : error;
}

static i64 read(u64 handle, struct text unused) {
	(void)unused;
	return file_read_at(files, handle, 0, ~0ul, print, NULL);
}

static i64 write(u64 handle, struct text data) {
	i64 n = file_write_at(files, handle, 0, data.data, data.length);
	return n < 0 ? n : file_sync(files, handle);
}

static i64 truncate(u64 handle, struct text size) {
	u64 n;
	return parse_number(size, &n) ? -EINVAL : file_truncate(files, handle, n);
}

static i64 stat(struct text path) {
	struct file_info info;
	int error = file_stat(files, path, &info);

	if (error)
		return error;
	print_number(info.size, ' ');
	print_number(info.seconds, ' ');
	print_number(info.mode, '\n');
	return 0;
}

/* USAGE for what is no operation. */
static i64 operate(struct text name, struct text a, struct text b, u32 arguments) {
	const struct text none = {"", 0};

	if (arguments == 1) {
		if (TEXT_IS(name, "read"))
			return with_file(a, FILE_READ, read, none);
		if (TEXT_IS(name, "stat"))
			return stat(a);
		if (TEXT_IS(name, "list"))
			return file_list(files, a, print_name, NULL);
		if (TEXT_IS(name, "mkdir"))
			return file_make_folder(files, a);
		if (TEXT_IS(name, "remove"))
			return file_remove(files, a);
	} else if (arguments == 2) {
		if (TEXT_IS(name, "write"))
			return with_file(a, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, write, b);
		if (TEXT_IS(name, "append"))
			return with_file(a, FILE_APPEND | FILE_CREATE, write, b);
		if (TEXT_IS(name, "create"))
			return with_file(a, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE, write, b);
		if (TEXT_IS(name, "truncate"))
			return with_file(a, FILE_WRITE, truncate, b);
		if (TEXT_IS(name, "rename"))
			return file_rename(files, a, b);
	}
	return USAGE;
}

int program_main(void) {
	int error = file_system_open(&files);

	if (error) {
		log(LOG_ERROR, "file system: error %d", -(i64)error);
		return 1;
	}
	for (u32 i = 1, end; i < boot->arg_count; i = end + 1) {
		for (end = i; end < boot->arg_count && !TEXT_IS(arg(end), ","); end++)
			;
		struct text name = arg(i);
		i64 result = end - i < 2 ? USAGE : operate(name, arg(i + 1), arg(end - 1), end - i - 1);
		if (result == USAGE) {
			log(LOG_ERROR, "usage: files OPERATION ARGUMENT... [, OPERATION ARGUMENT...]...");
			return 64;
		}
		if (result < 0) {
			struct text path = arg(i + 1);
			log(LOG_ERROR, "%t %t: error %d", &name, &path, -result);
			return 1;
		}
	}
	stream_close(files);
	return 0;
}
