/* Standard input and output of the monitor. PROTOCOL.md, section 10. */
#ifndef STDIO_H
#define STDIO_H

#include "../kernel/kernel.h"

/*
 * Reads are what the user types or pipes in, 0 at its end; writes go to the
 * monitor's standard output. -EBUSY while another stream has it.
 */
int stdio_open(struct stream **s);

#endif
