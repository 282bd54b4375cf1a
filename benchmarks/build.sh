#!/bin/sh
# Build what the benchmarks compare with: benchmarks/build/one-by-one.
set -eu
cd "$(dirname "$0")"
mkdir -p build
${CC:-gcc} -std=c11 -D_GNU_SOURCE -O3 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror \
	-o build/one-by-one one_by_one.c
