/*
 * csum.c - the Internet checksum: sums over any bytes, the pseudo header, the IPv4 header.
 *
 * Place:      under every stage that writes or verifies a checksum (gso, coalesce, icmp, fragment, ecn, pipeline).
 * Structure:  2^16 = 1 modulo 65535, so it does not matter in which 16-bit column of a wide lane a word stands, and the bytes
 *             may be added in native order and the folded sum swapped once (RFC 1071, section 2).
 *
 *                 lane (64 bits)   | w3 | w2 | w1 | w0 |      all  += lane            modulo 2^64
 *                                  '---high--'---low---'      high += lane >> 32
 *
 *             low = all - (high << 32) modulo 2^64 is exact: it is less than 2^64. So a vector costs one shift and two
 *             additions. The last, partial vector is loaded so that it ends with the bytes, and what was added before is masked.
 * Invariants: reads bytes[0..size) only. A sum of nonzero bytes never folds to 0, so 0xffff stands for zero.
 * Limits:     less than 2^32 vectors a call (256 GiB). A part that is not the last must have an even size.
 * Source:     RFC 1071, RFC 1624.
 */
#include "csum.h"

#include <endian.h>
#include <string.h>

enum { VECTOR = 64 };

typedef uint64_t lanes __attribute__((vector_size(VECTOR)));

static const uint8_t csum_mask[2 * VECTOR] = { [VECTOR ... 2 * VECTOR - 1] = 0xff };

static inline uint16_t csum_native_short(const uint8_t *bytes, size_t size)
{
	uint64_t sum = 0, word;
	uint32_t half;
	uint16_t quarter;

	for (; size >= sizeof(word); bytes += sizeof(word), size -= sizeof(word)) {
		memcpy(&word, bytes, sizeof(word));
		sum += (word & 0xffffffff) + (word >> 32);
	}
	if (size & sizeof(half)) {
		memcpy(&half, bytes, sizeof(half));
		sum += half;
		bytes += sizeof(half);
	}
	if (size & sizeof(quarter)) {
		memcpy(&quarter, bytes, sizeof(quarter));
		sum += quarter;
	}
	return csum_fold(sum);
}

/* size >= VECTOR, even. Inlined into each clone of its caller, or it would not be compiled for that CPU. */
__attribute__((always_inline))
static inline uint16_t csum_native_long(const uint8_t *bytes, size_t size)
{
	const uint8_t *end = bytes + size;
	size_t tail = size % VECTOR;
	lanes all = { 0 }, high = { 0 }, lane, mask;
	uint64_t sum = 0;

	for (; bytes != end - tail; bytes += VECTOR) {
		memcpy(&lane, bytes, VECTOR);
		all += lane;
		high += lane >> 32;
	}
	if (tail) {
		memcpy(&lane, end - VECTOR, VECTOR);
		memcpy(&mask, csum_mask + tail, VECTOR);
		lane &= mask;
		all += lane;
		high += lane >> 32;
	}
	all -= high << 32;
	for (int i = 0; i < (int)(VECTOR / sizeof(uint64_t)); i++)
		sum += csum_fold(all[i]) + (uint64_t)csum_fold(high[i]);
	return csum_fold(sum);
}

__attribute__((target_clones("avx512f", "avx2", "default")))
uint64_t csum_add(const uint8_t *bytes, size_t size, uint64_t sum)
{
	size_t even = size & ~(size_t)1;

	if (size & 1)
		sum += (uint64_t)bytes[even] << 8;
	return sum + be16toh(even < VECTOR ? csum_native_short(bytes, even) : csum_native_long(bytes, even));
}

uint64_t csum_pseudo(const struct canal_flow *flow, uint32_t l4_bytes)
{
	uint64_t sum = (uint64_t)flow->proto + l4_bytes;

	/* The ffff of a v4-mapped address is zero in one's complement: one loop for both families. */
	for (int i = 0; i < 16; i += 4)
		sum += (uint64_t)load_be32(flow->src + i) + load_be32(flow->dst + i);
	return sum;
}

void csum_ipv4(uint8_t *ip, uint32_t header_size)
{
	store_be16(ip + 10, 0);
	store_be16(ip + 10, (uint16_t)~csum_fold(csum_add(ip, header_size, 0)));
}

const char *csum_isa(void)
{
	return __builtin_cpu_supports("avx512f") ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "scalar";
}

const char *canal_isa(void)
{
	return csum_isa();
}
