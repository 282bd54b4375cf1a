/*
 * fuzz_gso.c - any packet and any sizes through every state of a transport checksum, and cut and joined again.
 *
 * Input:      [gso_size, 2 bytes][headroom][packet].
 * Invariants: whatever the checksum was, partial is a state that verifies, and so does final after it. Segments verify, and what coalesce
 *             makes of them is cut into the same bytes. Heads stay inside an arena of exactly the size that gso_stride() says.
 */
/* sources: gso.c coalesce.c parse.c vnet.c csum.c */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "gso.h"
#include "parse.h"
#include "vnet.h"

enum { INPUT_HEADER = 3, OUT_BYTES = 1 << 17 };

struct wire {
	uint8_t *bytes;
	struct canal_span spans[CANAL_SEGMENTS_MAX];
	int n;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(bool condition)
{
	if (!condition)
		abort();
}

static void *allocate(size_t size)
{
	void *block = calloc(1, size ? size : 1);

	demand(block);
	return block;
}

/* Mutations rarely hit the IPv4 header checksum, and nothing behind parse would be reached. */
static void repair(struct packet *p)
{
	uint32_t header_size = p->size ? (p->data[0] & 15u) * 4 : 0;

	if (header_size >= 20 && header_size <= p->size && p->data[0] >> 4 == 4)
		csum_ipv4(p->data, header_size);
}

static void check_states(struct packet *p)
{
	gso_verify_csum(p);
	gso_make_partial(p);
	if (!p->vnet.needs_csum)
		return;
	demand(gso_verify_csum(p));
	gso_finish_csum(p);
	demand(!p->vnet.needs_csum && gso_verify_csum(p));
}

/* The header that a TUN would bring for it, with the input's gso_size. */
static bool ask_for_segments(struct packet *p, uint16_t gso_size)
{
	struct canal_vnet vnet = p->vnet;
	uint8_t hdr[CANAL_VNET_HDR_SIZE];

	vnet.gso_type = p->flow.proto == IPPROTO_UDP ? GSO_UDP_L4 : p->flow.family == 4 ? GSO_TCPV4 : GSO_TCPV6;
	vnet.gso_size = gso_size;
	vnet_push(hdr, &vnet);
	return vnet_pull(hdr, &p->flow, &p->vnet) == CANAL_DROP_NONE;
}

static void cut(const struct packet *p, uint32_t headroom, struct wire *wire)
{
	struct segment segments[CANAL_SEGMENTS_MAX];
	size_t heads_size = (size_t)gso_stride(p, headroom) * p->vnet.segments, used = 0;
	uint8_t *heads = allocate(heads_size);

	demand(gso_segment(p, headroom, heads, heads_size - 1, segments, CANAL_SEGMENTS_MAX) == 0);
	wire->n = (int)gso_segment(p, headroom, heads, heads_size, segments, CANAL_SEGMENTS_MAX);
	demand(wire->n == p->vnet.segments);
	for (int i = 0; i < wire->n; i++) {
		memcpy(wire->bytes + used, segments[i].head, segments[i].head_size);
		memcpy(wire->bytes + used + segments[i].head_size, segments[i].payload, segments[i].payload_size);
		wire->spans[i] = (struct canal_span){ (uint32_t)used, segments[i].head_size + segments[i].payload_size };
		used += wire->spans[i].size;
	}
	free(heads);
}

static void check_wire(const struct wire *wire)
{
	for (int i = 0; i < wire->n; i++) {
		struct packet p = { .data = wire->bytes + wire->spans[i].offset, .vnet = { .segments = 1 } };

		demand(parse_packet(p.data, wire->spans[i].size, &p.flow) == CANAL_DROP_NONE && p.flow.total_size == wire->spans[i].size);
		p.size = p.total = p.flow.total_size;
		demand(gso_verify_csum(&p));
	}
}

static void check_joined(const struct wire *wire)
{
	struct canal_span joined[CANAL_SEGMENTS_MAX], spans[CANAL_SEGMENTS_MAX];
	struct canal_vnet vnets[CANAL_SEGMENTS_MAX];
	uint8_t *out = allocate(OUT_BYTES), *again = allocate(OUT_BYTES);
	int n = canal_coalesce(wire->bytes, wire->spans, (size_t)wire->n, 0, out, OUT_BYTES, joined, vnets, CANAL_SEGMENTS_MAX), at = 0;

	demand(n >= 1 && n <= wire->n);
	for (int i = 0; i < n; i++) {
		int count = canal_segment(out + joined[i].offset, joined[i].size, &vnets[i], again, OUT_BYTES, spans, CANAL_SEGMENTS_MAX);

		demand(count == vnets[i].segments && at + count <= wire->n);
		for (int k = 0; k < count; k++, at++) {
			demand(spans[k].size == wire->spans[at].size);
			demand(memcmp(again + spans[k].offset, wire->bytes + wire->spans[at].offset, spans[k].size) == 0);
		}
	}
	demand(at == wire->n);
	free(out);
	free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct packet p = { .vnet = { .segments = 1 } };
	struct wire wire;

	if (size < INPUT_HEADER)
		return 0;
	p.size = (uint32_t)(size - INPUT_HEADER);
	p.data = allocate(p.size);
	memcpy(p.data, data + INPUT_HEADER, p.size);
	repair(&p);
	if (parse_packet(p.data, p.size, &p.flow) == CANAL_DROP_NONE) {
		p.size = p.total = p.flow.total_size;
		check_states(&p);
		gso_make_partial(&p);
		if (p.vnet.needs_csum && ask_for_segments(&p, load_be16(data))) {
			wire.bytes = allocate(OUT_BYTES);
			cut(&p, data[2], &wire);
			check_wire(&wire);
			check_joined(&wire);
			free(wire.bytes);
		}
	}
	free(p.data);
	return 0;
}
