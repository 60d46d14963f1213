/* Addresses as text. */
#include "tcp.h"

static int hex_digit(char c) {
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse_ipv4(struct text s, u8 *address) {
	for (u32 part = 0; part < 4; part++) {
		u64 n = 0, value;
		while (n < s.length && s.data[n] != '.')
			n++;
		if (parse_number((struct text){s.data, n}, &value) || value > 255 || (part < 3) != (n < s.length))
			return -EINVAL;
		address[part] = value;
		n += part < 3;
		s.data += n;
		s.length -= n;
	}
	return 0;
}

/* Hexadecimal groups with at most one double colon. */
static int parse_ipv6(struct text s, u8 *address) {
	u32 groups = 0, gap = ~0u;
	u64 i = 0;

	memset(address, 0, 16);
	while (i < s.length) {
		if (s.data[i] == ':') {
			if (i + 1 >= s.length || s.data[i + 1] != ':' || gap != ~0u)
				return -EINVAL;
			gap = groups;
			i += 2;
			continue;
		}
		u32 value = 0, digits = 0;
		for (; i < s.length && hex_digit(s.data[i]) >= 0; i++, digits++)
			value = value << 4 | hex_digit(s.data[i]);
		if (!digits || digits > 4 || groups == 8)
			return -EINVAL;
		address[2 * groups] = value >> 8;
		address[2 * groups + 1] = value;
		groups++;
		if (i == s.length)
			break;
		if (s.data[i] != ':' || i + 1 == s.length)
			return -EINVAL;
		i += s.data[i + 1] != ':';
	}
	if (gap == ~0u)
		return groups == 8 ? 0 : -EINVAL;
	if (groups == 8)
		return -EINVAL;
	u32 tail = 2 * (groups - gap);
	memmove(address + 16 - tail, address + 2 * gap, tail);
	memset(address + 2 * gap, 0, 16 - tail - 2 * gap);
	return 0;
}

int address_parse(struct text s, struct endpoint *e) {
	*e = (struct endpoint){.family = 4};
	if (!parse_ipv4(s, e->address))
		return 0;
	e->family = 6;
	return parse_ipv6(s, e->address);
}

int endpoint_parse(struct text s, struct endpoint *e, struct text *host) {
	u64 colon = s.length, port;

	while (colon && s.data[colon - 1] != ':')
		colon--;
	if (!colon || parse_number((struct text){s.data + colon, s.length - colon}, &port) || port > 65535)
		return -EINVAL;
	struct text name = {s.data, colon - 1};
	*e = (struct endpoint){.port = port};
	if (name.length > 2 && name.data[0] == '[' && name.data[name.length - 1] == ']') {
		e->family = 6;
		return parse_ipv6((struct text){name.data + 1, name.length - 2}, e->address);
	}
	if (!parse_ipv4(name, e->address)) {
		e->family = 4;
		return 0;
	}
	if (!host || !name.length)
		return -EINVAL;
	memset(e->address, 0, sizeof e->address);
	*host = name;
	return 0;
}

static u64 ipv4_format(char *to, const u8 *a) {
	return format(to, ENDPOINT_TEXT, "%u.%u.%u.%u", (u64)a[0], (u64)a[1], (u64)a[2], (u64)a[3]);
}

static u64 ipv6_format(char *to, const u8 *a) {
	u32 longest = 0, longest_length = 1;
	u64 n = 0;

	for (u32 start = 0; start < 8; start++) {
		u32 length = 0;
		while (start + length < 8 && !a[2 * (start + length)] && !a[2 * (start + length) + 1])
			length++;
		if (length > longest_length) {
			longest = start;
			longest_length = length;
		}
	}
	for (u32 group = 0; group < 8; group++) {
		if (longest_length > 1 && group == longest) {
			to[n++] = ':';
			to[n++] = ':';
			group += longest_length - 1;
			continue;
		}
		if (n && to[n - 1] != ':')
			to[n++] = ':';
		u32 value = a[2 * group] << 8 | a[2 * group + 1], shift = 12;
		while (shift && !(value >> shift))
			shift -= 4;
		for (i32 at = shift; at >= 0; at -= 4)
			to[n++] = "0123456789abcdef"[value >> at & 15];
	}
	return n;
}

u64 address_format(char *to, const struct endpoint *e) {
	return e->family == 4 ? ipv4_format(to, e->address) : ipv6_format(to, e->address);
}

u64 endpoint_format(char *to, const struct endpoint *e) {
	u64 n;

	if (e->family == 4) {
		n = ipv4_format(to, e->address);
		return n + format(to + n, ENDPOINT_TEXT - n, ":%u", (u64)e->port);
	}
	to[0] = '[';
	n = 1 + ipv6_format(to + 1, e->address);
	return n + format(to + n, ENDPOINT_TEXT - n, "]:%u", (u64)e->port);
}
