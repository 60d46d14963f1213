#ifndef FORMAT_H
#define FORMAT_H

#include "base.h"

u64 format_list(char *to, u64 cap, const char *pattern, __builtin_va_list list);

#endif
