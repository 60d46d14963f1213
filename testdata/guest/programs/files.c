/*
 * files OPERATION ARGUMENT… [, OPERATION ARGUMENT…]…
 *
 * Works on the folders that the user shares, one operation after the other:
 *   read PATH                      write PATH TEXT
 *   append PATH TEXT               truncate PATH SIZE
 *   create PATH TEXT               PATH must not exist
 *   part PATH OFFSET LENGTH        reads without an open
 *   read-at PATH OFFSET LENGTH     write-at PATH OFFSET TEXT
 *   stat PATH                      stat-open PATH: by a handle
 *   list PATH                      mkdir PATH
 *   remove PATH                    rename PATH PATH
 *   burst PATH N COPY              reads in N requests at once, all but the end
 *                                  in the first one, the end in small pieces;
 *                                  writes what came to COPY
 * Output goes to the console. Exit code 0, or at the first operation that fails
 * 1 and a log record with its errno.
 */
#include "../proto/file.h"

enum { USAGE = -1000000 }; /* no errno */

static struct file_system files;

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

enum { MOST_ARGUMENTS = 3 };

/* Opens the first argument, does one thing, and closes. */
static i64 with_file(const struct text *args, u32 flags, i64 (*work)(u64 handle, const struct text *args)) {
	u64 handle;
	int error = file_open(&files, args[0], flags, &handle);

	if (error)
		return error;
	i64 result = work(handle, args);
	error = file_close(&files, handle);
	return result < 0 ? result : error;
}

static i64 read(u64 handle, const struct text *unused) {
	(void)unused;
	return file_read_at(&files, handle, 0, ~0ul, print, NULL);
}

static i64 read_at(u64 handle, const struct text *args) {
	u64 offset, length;

	if (parse_number(args[1], &offset) || parse_number(args[2], &length))
		return -EINVAL;
	return file_read_at(&files, handle, offset, length, print, NULL);
}

static i64 write(u64 handle, const struct text *args) {
	i64 n = file_write_at(&files, handle, 0, args[1].data, args[1].length);
	return n < 0 ? n : file_sync(&files, handle);
}

static i64 write_at(u64 handle, const struct text *args) {
	u64 offset;
	return parse_number(args[1], &offset) ? -EINVAL : file_write_at(&files, handle, offset, args[2].data, args[2].length);
}

static i64 truncate(u64 handle, const struct text *args) {
	u64 n;
	return parse_number(args[1], &n) ? -EINVAL : file_truncate(&files, handle, n);
}

static i64 part(struct text path, struct text from, struct text n) {
	u64 offset, length;

	if (parse_number(from, &offset) || parse_number(n, &length))
		return -EINVAL;
	return file_read(&files, path, offset, length, print, NULL);
}

static i64 print_info(int error, const struct file_info *info) {
	if (error)
		return error;
	print_number(info->size, ' ');
	print_number(info->seconds, ' ');
	print_number(info->mode, '\n');
	return 0;
}

static i64 stat(struct text path) {
	struct file_info info;
	return print_info(file_stat(&files, path, &info), &info);
}

static i64 stat_open(u64 handle, const struct text *unused) {
	struct file_info info;

	(void)unused;
	return print_info(file_stat_handle(&files, handle, &info), &info);
}

enum { SMALL = 256 };

static struct {
	struct text path;
	u8 *data;
	u64 size, requests;
	u64 ended, before_first; /* ended: atomic */
	i64 error;               /* of any; atomic */
	struct thread *waiter;
} burst;

static void store(void *argument, const u8 *data, u64 n) {
	u8 **to = argument;
	memmove(*to, data, n);
	*to += n;
}

/* The i-th request. */
static void ask(void *argument) {
	u64 i = (u64)argument, first = burst.size - SMALL * (burst.requests - 1);
	u64 offset = i ? first + SMALL * (i - 1) : 0, length = i ? SMALL : first;
	u8 *to = burst.data + offset;
	i64 n = file_read(&files, burst.path, offset, length, store, &to);

	if (n != (i64)length)
		__atomic_store_n(&burst.error, n < 0 ? n : -EIO, __ATOMIC_RELAXED);
	u64 before = __atomic_fetch_add(&burst.ended, 1, __ATOMIC_ACQ_REL);
	if (!i)
		burst.before_first = before;
	thread_wake(burst.waiter);
}

static i64 read_in_burst(struct text path, struct text requests) {
	struct file_info info;

	if (parse_number(requests, &burst.requests) || !burst.requests)
		return -EINVAL;
	int error = file_stat(&files, path, &info);
	if (error)
		return error;
	if (info.size < SMALL * burst.requests)
		return -EINVAL;
	burst.path = path;
	burst.size = info.size;
	burst.data = memory_alloc(info.size);
	burst.waiter = thread_current();
	if (!burst.data)
		return -ENOMEM;
	for (u64 i = 0; i < burst.requests; i++)
		if ((error = thread_start(i % boot->cpu_count, ask, (void *)i)))
			return error;
	while (__atomic_load_n(&burst.ended, __ATOMIC_ACQUIRE) != burst.requests)
		thread_sleep();
	log(LOG_INFO, "%u answers, %u of them before the first request's", burst.requests, burst.before_first);
	return burst.error;
}

static i64 write_burst(u64 handle, const struct text *unused) {
	(void)unused;
	return file_write_at(&files, handle, 0, burst.data, burst.size);
}

static i64 copy_in_burst(const struct text *args) {
	i64 error = read_in_burst(args[0], args[1]);
	return error ? error : with_file(args + 2, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, write_burst);
}

/* USAGE for what is no operation. */
static i64 operate(struct text name, const struct text *args, u32 count) {
	struct text path = args[0];

	if (count == 1) {
		if (TEXT_IS(name, "read"))
			return with_file(args, FILE_READ, read);
		if (TEXT_IS(name, "stat"))
			return stat(path);
		if (TEXT_IS(name, "stat-open"))
			return with_file(args, FILE_READ, stat_open);
		if (TEXT_IS(name, "list"))
			return file_list(&files, path, print_name, NULL);
		if (TEXT_IS(name, "mkdir"))
			return file_make_folder(&files, path);
		if (TEXT_IS(name, "remove"))
			return file_remove(&files, path);
	} else if (count == 2) {
		if (TEXT_IS(name, "write"))
			return with_file(args, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, write);
		if (TEXT_IS(name, "append"))
			return with_file(args, FILE_APPEND | FILE_CREATE, write);
		if (TEXT_IS(name, "create"))
			return with_file(args, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE, write);
		if (TEXT_IS(name, "truncate"))
			return with_file(args, FILE_WRITE, truncate);
		if (TEXT_IS(name, "rename"))
			return file_rename(&files, path, args[1]);
	} else if (count == 3) {
		if (TEXT_IS(name, "burst"))
			return copy_in_burst(args);
		if (TEXT_IS(name, "part"))
			return part(path, args[1], args[2]);
		if (TEXT_IS(name, "read-at"))
			return with_file(args, FILE_READ, read_at);
		if (TEXT_IS(name, "write-at"))
			return with_file(args, FILE_WRITE | FILE_CREATE, write_at);
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
		struct text name = arg(i), args[MOST_ARGUMENTS] = {{"", 0}};
		u32 count = end - i - 1;
		for (u32 k = 0; k < count && k < MOST_ARGUMENTS; k++)
			args[k] = arg(i + 1 + k);
		i64 result = operate(name, args, count);
		if (result == USAGE) {
			log(LOG_ERROR, "usage: files OPERATION ARGUMENT... [, OPERATION ARGUMENT...]...");
			return 64;
		}
		if (result < 0) {
			log(LOG_ERROR, "%t %t: error %d", &name, &args[0], -result);
			return 1;
		}
	}
	file_system_close(&files);
	return 0;
}
