/*
 * fuzz_parse.c - any bytes as a packet, and as the packet that an ICMP error quotes.
 *
 * Invariants: what parse accepts lies inside what was received (libFuzzer's buffer has exactly `size` bytes, ASan sees the next one).
 */
/* sources: parse.c csum.c */
#include <stdlib.h>

#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct canal_flow flow, quoted;
	enum canal_drop drop = parse_packet(data, (uint32_t)size, &flow);

	if (flow.drop != drop)
		abort();
	if (drop != CANAL_DROP_NONE)
		return 0;
	if (flow.total_size > size || (uint32_t)flow.l4_offset + flow.l4_size > flow.total_size || (flow.family != 4 && flow.family != 6))
		abort();
	if ((flow.flags & CANAL_FLOW_ICMP_ERROR) && parse_quoted(data, &flow, &quoted) && quoted.family != flow.family)
		abort();
	return 0;
}
