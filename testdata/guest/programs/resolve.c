/*
 * resolve [-4|-6] NAME…
 *
 * Prints the addresses of each name to the console, a line each; with -4 and -6
 * those of this family.
 *
 * resolve -x ADDR…
 *
 * Prints the names of each address.
 *
 * Exit code 1 and a log record with an errno for each that fails.
 */
#include "../proto/resolver.h"

static struct resolver resolver;

static void print(struct text line) {
	console_write(line.data, line.length);
	console_write("\n", 1);
}

static i64 addresses(struct text name, u8 family) {
	static struct endpoint found[RESOLVER_ADDRESSES_MAX];
	char line[ENDPOINT_TEXT];
	i64 n = resolve_name(&resolver, name, family, found, RESOLVER_ADDRESSES_MAX);

	for (i64 i = 0; i < n; i++)
		print((struct text){line, address_format(line, &found[i])});
	return n;
}

static i64 names(struct text text) {
	struct endpoint address;

	return address_parse(text, &address) ? -EINVAL : resolve_address(&resolver, &address, print);
}

int program_main(void) {
	struct text option = arg(1);
	u8 family = TEXT_IS(option, "-4") ? 4 : TEXT_IS(option, "-6") ? 6 : 0;
	int reverse = TEXT_IS(option, "-x"), result = 0;
	u32 first = family || reverse ? 2 : 1;

	if (first >= boot->arg_count) {
		log(LOG_ERROR, "usage: resolve [-4|-6] NAME... | resolve -x ADDR...");
		return 64;
	}
	int error = resolver_open(&resolver);
	if (error) {
		log(LOG_ERROR, "resolver: error %d", -(i64)error);
		return 1;
	}
	for (u32 i = first; i < boot->arg_count; i++) {
		struct text what = arg(i);
		i64 n = reverse ? names(what) : addresses(what, family);
		if (n < 0) {
			log(LOG_ERROR, "%t: error %d", &what, -n);
			result = 1;
		}
	}
	resolver_close(&resolver);
	return result;
}
