/* Files below the folders that the user shares. PROTOCOL.md, section 10. */
#ifndef FILE_H
#define FILE_H

#include "../kernel/kernel.h"

enum { FILE_READ = 1, FILE_WRITE = 2, FILE_APPEND = 4, FILE_CREATE = 8, FILE_TRUNCATE = 16, FILE_EXCLUSIVE = 32 };
enum { FILE_NAME_MAX = 255 };

/* As it goes over the wire. */
struct file_info {
	u64 size;
	i64 seconds;
	u32 nanoseconds, mode; /* st_mode's bits */
};

typedef void file_sink(void *argument, const u8 *data, u64 n);

/*
 * A stream that speaks the file system protocol. Any number of threads may use
 * it at once: each answer goes to the thread that asked.
 */
struct file_system {
	struct channel channel;
};

/* It must stay where it is until the VM ends. */
int file_system_open(struct file_system *f);
void file_system_close(struct file_system *f);

/*
 * Reads length bytes from offset on, or up to the end of the file; gives them
 * to sink piece by piece, in order. How many they were. A sink runs in another
 * thread than the caller's, which sleeps, and holds up all answers.
 */
i64 file_read(struct file_system *f, struct text path, u64 offset, u64 length, file_sink *sink, void *argument);

/* The handle is good until file_close, or until the file system is closed. */
int file_open(struct file_system *f, struct text path, u32 flags, u64 *handle);
i64 file_read_at(struct file_system *f, u64 handle, u64 offset, u64 length, file_sink *sink, void *argument);
/*
 * How many bytes were written, all of them unless there is an error. With
 * FILE_APPEND the offset doesn't count.
 */
i64 file_write_at(struct file_system *f, u64 handle, u64 offset, const void *data, u64 n);
int file_truncate(struct file_system *f, u64 handle, u64 size);
int file_sync(struct file_system *f, u64 handle);
int file_close(struct file_system *f, u64 handle);

int file_stat(struct file_system *f, struct text path, struct file_info *info);
int file_stat_handle(struct file_system *f, u64 handle, struct file_info *info);
/* Gives each name to sink; type is d_type's. */
int file_list(struct file_system *f, struct text path, void (*sink)(void *argument, u8 type, struct text name), void *argument);
/* With its parents; a folder that exists is no error. */
int file_make_folder(struct file_system *f, struct text path);
int file_remove(struct file_system *f, struct text path);
int file_rename(struct file_system *f, struct text from, struct text to);

#endif
