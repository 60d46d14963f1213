/* Files below the folder that the user shares. */
#ifndef FILE_H
#define FILE_H

#include "../kernel/kernel.h"

/* A stream that speaks the file system protocol; one thread at a time may use it. */
int file_system_open(struct stream **s);
/*
 * Reads length bytes from offset on, or up to the end of the file; gives them to sink piece by piece, in order.
 * How many they were.
 */
i64 file_read(struct stream *s, struct text path, u64 offset, u64 length, void (*sink)(void *, const u8 *, u64), void *sink_argument);

#endif
