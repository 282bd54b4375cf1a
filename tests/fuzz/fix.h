/* fix.h - give a mutated IPv4 header its checksum back, so that a fuzzer sees what lies behind the check. */
#ifndef CANAL_FUZZ_FIX_H
#define CANAL_FUZZ_FIX_H
#include "csum.h"

static inline void fix_ipv4(uint8_t *ip, size_t size)
{
	uint32_t header = size ? (ip[0] & 15u) * 4 : 0;

	if (size >= 20 && ip[0] >> 4 == 4 && header >= 20 && header <= size)
		csum_ipv4(ip, header);
}
#endif
