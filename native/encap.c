/*
 * encap.c - encapsulation and decapsulation of arrays of packets.
 *
 * Place:      canal.h's batch form of encap_vxlan.c and encap_udp.c, for tests and benchmarks; the worker calls those itself.
 * Threads:    any; the snapshot is only read.
 */
#include "encap.h"

#include <string.h>

#include "tables.h"

int canal_encap_batch(const struct canal_tables *tables, const uint8_t *bytes, const struct canal_span *spans,
                const uint32_t *which, size_t n, uint8_t *out, size_t out_size, struct canal_span *out_spans)
{
	size_t used = 0;

	for (size_t i = 0; i < n; i++) {
		const uint8_t *packet = bytes + spans[i].offset;
		const struct canal_vtep *vtep;
		uint32_t overhead;

		if (which[i] >= tables->n_vteps)
			return CANAL_ERANGE;
		if (spans[i].size == 0 || (packet[0] >> 4 != 4 && packet[0] >> 4 != 6))
			return CANAL_EINVAL;
		vtep = &tables->vteps[which[i]];
		overhead = encap_overhead(vtep->encap);
		if ((size_t)spans[i].size + overhead > out_size - used)
			return CANAL_ERANGE;
		memcpy(out + used + overhead, packet, spans[i].size);
		encap_push(out + used + overhead, packet[0] >> 4, &tables->node, vtep);
		out_spans[i] = (struct canal_span){ (uint32_t)used, spans[i].size + overhead };
		used += out_spans[i].size;
	}
	return (int)n;
}

int canal_decap_batch(const struct canal_tables *tables, uint32_t encap, const uint8_t *bytes, const struct canal_span *spans, size_t n,
                struct canal_span *inner, uint16_t *drops)
{
	if (encap != CANAL_ENCAP_UDP && encap != CANAL_ENCAP_VXLAN)
		return CANAL_EINVAL;
	for (size_t i = 0; i < n; i++) {
		/* pull writes nothing; it only hands the caller's pointer back */
		uint8_t *datagram = (uint8_t *)(uintptr_t)bytes + spans[i].offset, *packet;

		inner[i] = (struct canal_span){ 0, 0 };
		drops[i] = (uint16_t)encap_pull((uint8_t)encap, datagram, spans[i].size, &tables->node, &packet, &inner[i].size);
		if (drops[i] == CANAL_DROP_NONE)
			inner[i].offset = (uint32_t)(packet - bytes);
	}
	return (int)n;
}
