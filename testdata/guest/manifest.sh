#!/bin/sh
# Prints what the images in the folder $1 were built from, for
# ../images/MANIFEST. CFLAGS and LDFLAGS come from the Makefile.
set -eu
export LC_ALL=C
echo "tool $(gcc --version | head -n 1)"
echo "tool $(ld --version | head -n 1)"
echo "cflags $CFLAGS"
echo "ldflags $LDFLAGS"
find . -path ./build -prune -o -type f \( -name '*.[chS]' -o -name '*.ld' -o -name '*.sh' -o -name Makefile \) -print |
	sed 's|^\./||' | sort | while read -r file; do
	echo "source $(sha256sum <"$file" | cut -d ' ' -f 1) $file"
done
for image in "$1"/*; do
	echo "image $(sha256sum <"$image" | cut -d ' ' -f 1) $(basename "$image")"
done
