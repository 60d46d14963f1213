/*
 * rpc-hello [NAME] [CODE]
 *
 * Greets by records with and without their optional parts, shows its arguments,
 * exits with CODE (may be negative) by the control pipe.
 */
#include "../kernel/rpc.h"

i32 program_main(void) {
	struct text name = arg_count > 1 ? arg(1) : (struct text){"world", 5}, code = arg(2);
	u64 number = 0;
	int negative = code.length && code.data[0] == '-';

	log(LOG_INFO, "hello, %t", &name);
	log_record(LOG_WARNING, NULL, 0, "hello without a place, %t", &name);
	for (u64 i = 0; i < arg_count; i++) {
		struct text t = arg(i);
		log(LOG_DEBUG, "argument %u: %t", i, &t);
	}
	if (code.length && parse_number((struct text){code.data + negative, code.length - negative}, &number)) {
		log(LOG_ERROR, "%t is not a number", &code);
		return 64;
	}
	return negative ? -(i32)number : (i32)number;
}
