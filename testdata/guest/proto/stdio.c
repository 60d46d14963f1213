#include "stdio.h"
#include "open.h"

int stdio_open(struct stream **s) {
	int error = stream_open(s, 16384, 16384);

	if (error)
		return error;
	error = protocol_open(*s, PROTOCOL_STDIO, NULL, 0, NULL, 0);
	if (error)
		stream_close(*s);
	return error;
}
