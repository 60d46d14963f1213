/*
 * The body of httpd's /bytes: byte i is (j + 7 * (j / 256)) mod 256, where j =
 * i mod 4096.
 */
	.section .rodata.pattern, "a"
	.global pattern
	.type pattern, @object
	.align 8
pattern:
	.set j, 0
	.rept 4096
	.byte (j + 7 * (j >> 8)) & 0xFF
	.set j, j + 1
	.endr
	.size pattern, . - pattern
