/* What exceptions are called. */
#include "base.h"

static const char *const names[32] = {
	"division error", "debug", "non-maskable interrupt", "breakpoint", "overflow", "bound range", "invalid opcode", "device not available",
	"double fault", "exception", "invalid TSS", "segment not present", "stack segment fault", "general protection fault", "page fault", "exception",
	"floating point error", "alignment check", "machine check", "SIMD floating point error", "virtualization exception", "control protection exception",
};

const char *exception_name(u64 vector) {
	return names[vector] ? names[vector] : "exception";
}
