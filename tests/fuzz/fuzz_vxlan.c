/*
 * fuzz_vxlan.c - any bytes as a VXLAN datagram, then its inner packet.
 *
 * Invariants: an accepted datagram has the one good header and an inner packet of the rest; both encapsulations agree with parse on size.
 */
/* sources: encap_vxlan.c encap_udp.c parse.c csum.c ecn.c */
#include <stdlib.h>
#include <string.h>

#include "ecn.h"
#include "encap.h"
#include "fix.h"
#include "parse.h"

static const struct canal_node node = { .mac = { 2, 0, 0, 0, 0, 1 }, .vni = 1 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decap(const uint8_t *data, size_t size, uint8_t encap)
{
	uint8_t *datagram = malloc(size ? size : 1), *inner;
	uint32_t inner_size;
	struct packet p = { 0 };

	memcpy(datagram, data, size);
	if (encap_pull(encap, datagram, (uint32_t)size, &node, &inner, &inner_size) == CANAL_DROP_NONE) {
		if (inner != datagram + encap_overhead(encap) || inner_size != size - encap_overhead(encap))
			abort();
		fix_ipv4(inner, inner_size);
		p.data = inner;
		p.size = p.total = inner_size;
		if (parse_packet(inner, inner_size, &p.flow) == CANAL_DROP_NONE)
			ecn_decap(&p, 3);
	}
	free(datagram);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	decap(data, size, CANAL_ENCAP_VXLAN);
	decap(data, size, CANAL_ENCAP_UDP);
	return 0;
}
