#!/bin/sh
# Compares freshly built images (folder $1) with the committed ones (folder $2).
# With the tools that the manifest names they must be equal byte by byte; with
# others the entry and what is loaded must be.
set -eu
tools() { { gcc --version | head -n 1; ld --version | head -n 1; } | sed 's/^/tool /'; }
loaded() { objcopy -O binary "$1" /dev/stdout; readelf -h "$1" | grep 'Entry point'; }

same_tools=yes
[ "$(tools)" = "$(grep '^tool ' "$2/MANIFEST")" ] || same_tools=no
for image in "$1"/*; do
	name=$(basename "$image")
	if cmp -s "$image" "$2/$name"; then
		continue
	fi
	if [ $same_tools = yes ]; then
		echo "$name: not what the sources give: run make images" >&2
		exit 1
	fi
	if [ "$(loaded "$image" | sha256sum)" != "$(loaded "$2/$name" | sha256sum)" ]; then
		echo "$name: other code than the committed image's; but the tools are others, too. Here:" >&2
		tools >&2
		exit 1
	fi
done
echo "images: as built from the sources (same tools as in the manifest: $same_tools)"
