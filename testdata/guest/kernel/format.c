/* Text from numbers and back. */
#include "format.h"

struct output {
	char *to, *end;
};

static void put(struct output *o, const char *data, u64 n) {
	n = MIN(n, (u64)(o->end - o->to));
	memcpy(o->to, data, n);
	o->to += n;
}

static void put_number(struct output *o, u64 value, u32 base) {
	char digits[20], *d = digits + sizeof digits;
	do {
		*--d = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	put(o, d, digits + sizeof digits - d);
}

u64 format_list(char *to, u64 cap, const char *p, __builtin_va_list list) {
	struct output o = {to, to + cap};
	const char *end = p + strlen(p);

	for (;;) {
		const char *percent = memory_find(p, end - p, '%');
		put(&o, p, (percent ? percent : end) - p);
		if (!percent)
			return o.to - to;
		p = percent + 2;
		switch (percent[1]) {
		case 's': {
			const char *s = __builtin_va_arg(list, const char *);
			put(&o, s, strlen(s));
			break;
		}
		case 't': {
			const struct text *t = __builtin_va_arg(list, const struct text *);
			put(&o, t->data, t->length);
			break;
		}
		case 'c': {
			char c = __builtin_va_arg(list, int);
			put(&o, &c, 1);
			break;
		}
		case 'd': {
			i64 d = __builtin_va_arg(list, i64);
			if (d < 0)
				put(&o, "-", 1);
			put_number(&o, d < 0 ? -(u64)d : (u64)d, 10);
			break;
		}
		case 'u':
			put_number(&o, __builtin_va_arg(list, u64), 10);
			break;
		case 'x':
			put(&o, "0x", 2);
			put_number(&o, __builtin_va_arg(list, u64), 16);
			break;
		default:
			put(&o, "%", 1);
		}
	}
}

u64 format(char *to, u64 cap, const char *pattern, ...) {
	__builtin_va_list list;
	__builtin_va_start(list, pattern);
	u64 n = format_list(to, cap, pattern, list);
	__builtin_va_end(list);
	return n;
}

int parse_number(struct text s, u64 *number) {
	u64 value = 0;

	if (!s.length)
		return -EINVAL;
	for (u64 i = 0; i < s.length; i++) {
		u64 digit = (u8)s.data[i] - '0';
		if (digit > 9 || value > (~0ul - digit) / 10)
			return -EINVAL;
		value = value * 10 + digit;
	}
	*number = value;
	return 0;
}

int text_equal(struct text a, const char *b) {
	return a.length == strlen(b) && !memcmp(a.data, b, a.length);
}
