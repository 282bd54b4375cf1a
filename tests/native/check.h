/*
 * check.h - what the C test programs share: checks that say where they failed, seeded randomness, hex on stdout for an oracle in Python.
 *
 * Place:      included by tests/native/test_*.c, which tests/native_build.py compiles with the sanitizers and runs.
 * Invariants: a failed check prints file, line and both values, and ends the program with status 1.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)

#define CHECK_EQ(a, b) \
	do { \
		long long check_a = (long long)(a), check_b = (long long)(b); \
		if (check_a != check_b) { \
			fprintf(stderr, "%s:%d: failed: %s = %lld, but %s = %lld\n", __FILE__, __LINE__, #a, check_a, #b, check_b); \
			exit(1); \
		} \
	} while (0)

#define CHECK_BYTES(a, b, size) \
	do { \
		if (memcmp((a), (b), (size)) != 0) { \
			fprintf(stderr, "%s:%d: failed: %s and %s differ within %zu bytes\n", __FILE__, __LINE__, #a, #b, (size_t)(size)); \
			exit(1); \
		} \
	} while (0)

/* splitmix64: the same seed gives the same test everywhere. */
static inline uint64_t random_u64(uint64_t *seed)
{
	uint64_t z = *seed += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* 0 <= result < n */
static inline uint32_t random_below(uint64_t *seed, uint32_t n)
{
	return (uint32_t)(random_u64(seed) % n);
}

static inline void random_bytes(uint64_t *seed, uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)random_u64(seed);
}

/* A copy in a block of exactly that size, so that ASan sees the first byte read beyond it. The caller frees it. */
static inline uint8_t *exact_copy(const uint8_t *bytes, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	if (size)
		memcpy(copy, bytes, size);
	return copy;
}

/* The bytes that a text states in hex, up to its first other character; returns how many. */
static inline size_t hex_bytes(const char *text, uint8_t *bytes, size_t max)
{
	static const char digits[] = "0123456789abcdef";
	size_t n = 0;

	for (const char *high, *low; n < max; n++) {
		if (!text[2 * n] || !(high = strchr(digits, text[2 * n])))
			break;
		if (!text[2 * n + 1] || !(low = strchr(digits, text[2 * n + 1])))
			break;
		bytes[n] = (uint8_t)((high - digits) << 4 | (low - digits));
	}
	return n;
}

/* One line: the label and the bytes in hex. */
static inline void print_hex(const char *label, const uint8_t *bytes, size_t size)
{
	printf("%s ", label);
	for (size_t i = 0; i < size; i++)
		printf("%02x", bytes[i]);
	printf("\n");
}

#endif
