#!/bin/sh
# Build the programs of the benchmarks that are older than their source: benchmarks/build/one-by-one, udp-blast, pingpong.
set -eu
cd "$(dirname "$0")"
mkdir -p build
for source in *.c; do
	program=build/$(basename "$source" .c | tr _ -)
	[ -n "$(find "$program" -newer "$source" 2>/dev/null)" ] && continue
	${CC:-gcc} -std=c11 -D_GNU_SOURCE -O3 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror \
		-o "$program.$$" "$source"
	mv "$program.$$" "$program" # at once: someone may be running the old one
done
