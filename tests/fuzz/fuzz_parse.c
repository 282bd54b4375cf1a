/*
 * fuzz_parse.c - any bytes as a packet, and as the packet that an ICMP error quotes.
 *
 * Structure:  each input is read twice: as it is, and with the IPv4 header checksum made right, which mutation alone rarely finds.
 * Invariants: what parse accepts lies inside what was received (blocks of exactly the packet's size: ASan sees the next byte);
 *             flags, offsets and ports agree with each other; the same bytes give the same flow, and bytes behind the packet change nothing.
 * Run:        clang-19 -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -I native -o /tmp/fuzz_parse \
 *                 tests/fuzz/fuzz_parse.c native/parse.c native/csum.c && /tmp/fuzz_parse -max_total_time=60 tests/fuzz/corpus/parse
 */
/* sources: parse.c csum.c */
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

static void check_flow(const struct canal_flow *flow, uint32_t size)
{
	bool later = flow->flags & CANAL_FLOW_LATER_FRAG;

	require(flow->family == 4 || flow->family == 6);
	require(flow->total_size <= size);
	require(flow->l4_offset >= (flow->family == 4 ? 20 : 40) && flow->l4_offset <= 40 + 256);
	require((uint32_t)flow->l4_offset + flow->l4_size <= flow->total_size);
	require(!later || (flow->flags & CANAL_FLOW_FRAG && flow->frag_offset && !flow->l4_size && !flow->sport_be && !flow->dport_be));
	require(later || flow->frag_offset == 0);
	require(flow->frag_offset % 8 == 0);
	require(flow->family == 4 || flow->flags & CANAL_FLOW_DF);
	require(!(flow->flags & CANAL_FLOW_ICMP_ERROR) || flow->l4_size == 8);
}

static void check_quoted(const uint8_t *packet, const struct canal_flow *flow)
{
	struct canal_flow quoted;

	if (!parse_quoted(packet, flow, &quoted))
		return;
	require(flow->flags & CANAL_FLOW_ICMP_ERROR && quoted.family == flow->family);
	require(!(quoted.flags & (CANAL_FLOW_ICMP_ERROR | CANAL_FLOW_LATER_FRAG)));
	check_flow(&quoted, flow->total_size - flow->l4_offset - flow->l4_size);
}

static void check_packet(const uint8_t *bytes, uint32_t size)
{
	struct canal_flow flow, again;
	uint8_t *packet = malloc(size ? size : 1);

	require(packet);
	if (size)
		memcpy(packet, bytes, size);
	require(parse_packet(packet, size, &flow) == flow.drop && flow.drop < CANAL_DROPS);
	if (flow.drop == CANAL_DROP_NONE) {
		check_flow(&flow, size);
		check_quoted(packet, &flow);
		require(parse_packet(packet, flow.total_size, &again) == CANAL_DROP_NONE && memcmp(&flow, &again, sizeof(flow)) == 0);
	}
	free(packet);
}

static void fix_checksum(uint8_t *ip, uint32_t size)
{
	uint32_t header_size = (ip[0] & 15u) * 4;

	if (ip[0] >> 4 == 4 && header_size >= 20 && header_size <= size)
		csum_ipv4(ip, header_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *fixed;

	check_packet(data, (uint32_t)size);
	if (size == 0)
		return 0;
	fixed = malloc(size);
	require(fixed);
	memcpy(fixed, data, size);
	fix_checksum(fixed, (uint32_t)size);
	check_packet(fixed, (uint32_t)size);
	if (size > 28)
		fix_checksum(fixed + 28, (uint32_t)size - 28);         /* where an ICMP error quotes */
	check_packet(fixed, (uint32_t)size);
	free(fixed);
	return 0;
}
