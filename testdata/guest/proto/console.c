#include "console.h"
#include "open.h"

int console_open(struct stream **s) {
	int error = stream_open(s, 16384, 16384);

	if (error)
		return error;
	error = protocol_open(*s, PROTOCOL_CONSOLE, NULL, 0, NULL, 0);
	if (error)
		stream_close(*s);
	return error;
}
