/*
 * fuzz_vnet.c - any bytes as virtio_net_hdr and packet, then cut into wire packets.
 *
 * Invariants: an accepted header says the truth: as many segments as it claims come out, together they carry every payload byte once,
 *             and each is a packet that the parser takes.
 */
/* sources: vnet.c parse.c gso.c csum.c */
#include <stdlib.h>
#include <string.h>

#include "fix.h"
#include "gso.h"
#include "parse.h"
#include "vnet.h"

enum { HEADROOM = 32, HEADS_BYTES = 1 << 17 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Headers and payload of a segment in one piece are a packet; returns its payload bytes. */
static uint32_t check_segment(const struct packet *whole, const struct segment *segment)
{
	uint32_t size = segment->head_size + segment->payload_size;
	uint8_t *linear = malloc(size);
	struct canal_flow flow;

	memcpy(linear, segment->head, segment->head_size);
	memcpy(linear + segment->head_size, segment->payload, segment->payload_size);
	if (parse_packet(linear, size, &flow) != CANAL_DROP_NONE || flow.total_size != size || flow.proto != whole->flow.proto)
		abort();
	free(linear);
	return size - flow.l4_offset - flow.l4_size;
}

static void cut(const struct packet *p)
{
	static struct segment segments[CANAL_SEGMENTS_MAX];
	uint8_t *heads = malloc(HEADS_BYTES);
	uint32_t n = gso_segment(p, HEADROOM, heads, HEADS_BYTES, segments, CANAL_SEGMENTS_MAX), payload = 0;

	if (n != p->vnet.segments)
		abort();
	for (uint32_t i = 0; i < n; i++)
		payload += check_segment(p, &segments[i]);
	if (payload != p->flow.total_size - p->flow.l4_offset - p->flow.l4_size)
		abort();
	free(heads);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct packet p = { 0 };

	if (size < CANAL_VNET_HDR_SIZE)
		return 0;
	p.size = (uint32_t)size - CANAL_VNET_HDR_SIZE;
	p.data = malloc(p.size ? p.size : 1);
	memcpy(p.data, data + CANAL_VNET_HDR_SIZE, p.size);
	fix_ipv4(p.data, p.size);
	if (parse_packet(p.data, p.size, &p.flow) == CANAL_DROP_NONE && vnet_pull(data, &p.flow, &p.vnet) == CANAL_DROP_NONE) {
		p.size = p.total = p.flow.total_size;
		cut(&p);
		if (p.vnet.gso_type == GSO_NONE)
			gso_finish_csum(&p);
	}
	free(p.data);
	return 0;
}
