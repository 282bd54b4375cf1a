/* csum.h - RFC 1071 / 1624 sums; see csum.c. */
#ifndef CANAL_CSUM_H
#define CANAL_CSUM_H
#include "packet.h"

/* 16-bit one's complement sum of bytes in network order, not folded, not inverted. Dispatched at load time: scalar, AVX2, AVX-512. */
uint64_t csum_add(const uint8_t *bytes, size_t size, uint64_t sum);
static inline uint16_t csum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}
/* Sum of the pseudo header for `l4_bytes` of transport header and payload, both families. */
uint64_t csum_pseudo(const struct canal_flow *flow, uint32_t l4_bytes);
/* RFC 1624: the checksum field (as read big-endian) after a 16-bit word changed from `before` to `after`. */
static inline uint16_t csum_update16(uint16_t check, uint16_t before, uint16_t after)
{
	uint32_t sum = (uint32_t)(uint16_t)~check + (uint16_t)~before + after;
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~((sum & 0xffff) + (sum >> 16));
}
/* Recompute the IPv4 header checksum. */
void csum_ipv4(uint8_t *ip, uint32_t header_size);
/* "avx512", "avx2", "scalar" */
const char *csum_isa(void);
#endif
