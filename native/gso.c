/*
 * gso.c - one superpacket -> wire packets, and the transport checksum in its three states: partial, final, to be verified.
 *
 * Place:      before encapsulation (segment, finish), after decapsulation (verify, make partial).
 * Structure:
 *
 *     superpacket     | IP | L4 | payload .................................. |
 *                                  |  gso_size  |  gso_size  |   the rest   |
 *     segments        | IP | L4 |--^            ^            ^                   heads in the arena, payload by pointer
 *                     | IP | L4 |---------------'            |
 *                     | IP | L4 |----------------------------'
 *
 *             What changes from one head to the next is little: length, id, seq, flags. The sums of all other words are taken once
 *             (struct gso_sums); of the payload every byte is summed once and none is moved.
 * Invariants: the packet is only read. What leaves gso_segment() has final lengths and checksums; a UDP checksum is never 0.
 *             Packets that need no cutting and no checksum come out as they went in.
 * Threads:    any; no state.
 * Limits:     linear packets. TCP and UDP are cut; IPv4 options and IPv6 extension headers are repeated in every segment.
 * Source:     Linux net/ipv4/tcp_offload.c, udp_offload.c, af_inet.c: what a NIC does with TSO and USO; RFC 768, 793, 8200 8.1.
 */
#include "gso.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "parse.h"

enum { IP4_LENGTH = 2, IP4_ID = 4, IP4_CHECK = 10, IP6_LENGTH = 4, IP6_HEADER = 40 };
enum { TCP_SEQ = 4, TCP_FLAGS = 13, TCP_CHECK = 16, UDP_LENGTH = 4, UDP_CHECK = 6, ICMP_CHECK = 2 };
enum { FIN = 1, PSH = 8, CWR = 128 };

/* What all segments share, and where the first one starts. */
struct gso_sums {
	uint64_t ip;               /* IPv4 header without length, id, checksum                               */
	uint64_t l4;               /* pseudo and transport header without lengths, seq, flags, checksum      */
	uint32_t seq;
	uint16_t id;
	uint8_t flags;
};

static inline uint32_t gso_header_size(const struct packet *p)
{
	return (uint32_t)p->flow.l4_offset + p->flow.l4_size;
}

static inline bool gso_is_ported(const struct packet *p)
{
	return (p->flow.proto == IPPROTO_TCP || p->flow.proto == IPPROTO_UDP) && !(p->flow.flags & CANAL_FLOW_FRAG);
}

static inline uint8_t *gso_check_field(const struct packet *p, uint8_t *l4)
{
	return l4 + (p->flow.proto == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK);
}

static inline void gso_store_check(const struct packet *p, uint8_t *l4, uint64_t sum)
{
	uint16_t check = (uint16_t)~csum_fold(sum);

	store_be16(gso_check_field(p, l4), check == 0 && p->flow.proto == IPPROTO_UDP ? 0xffff : check);
}

/* Bytes that the transport checksum covers: UDP says so itself, and padding may follow it. */
static uint32_t gso_covered(const struct packet *p)
{
	uint32_t size = p->total - p->flow.l4_offset, udp_size;

	if (p->flow.proto != IPPROTO_UDP)
		return size;
	udp_size = load_be16(p->data + p->flow.l4_offset + UDP_LENGTH);
	return udp_size >= p->flow.l4_size && udp_size < size ? udp_size : size;
}

/* ---- segment ------------------------------------------------------------------------------------------------------------- */

/* `head` is scratch: the first segment's, written later. */
static void gso_sum_headers(const struct packet *p, uint8_t *head, struct gso_sums *s)
{
	uint8_t *l4 = head + p->flow.l4_offset;

	*s = (struct gso_sums){ 0 };
	memcpy(head, p->data, gso_header_size(p));
	if (p->flow.family == 4) {
		s->id = load_be16(head + IP4_ID);
		store_be32(head + IP4_LENGTH, 0);                /* and the id */
		store_be16(head + IP4_CHECK, 0);
		s->ip = csum_add(head, p->flow.l4_offset, 0);
	}
	store_be16(gso_check_field(p, l4), 0);
	if (p->flow.proto == IPPROTO_TCP) {
		s->seq = load_be32(l4 + TCP_SEQ);
		s->flags = l4[TCP_FLAGS];
		store_be32(l4 + TCP_SEQ, 0);
		l4[TCP_FLAGS] = 0;
	} else {
		store_be16(l4 + UDP_LENGTH, 0);
	}
	s->l4 = csum_add(l4, p->flow.l4_size, csum_pseudo(&p->flow, 0));
}

/* size: of the segment's IP packet */
static inline void gso_write_ip(const struct packet *p, const struct gso_sums *s, uint8_t *head, uint32_t index, uint32_t size)
{
	if (p->flow.family == 4) {
		uint16_t id = (uint16_t)(s->id + index);

		store_be16(head + IP4_LENGTH, size);
		store_be16(head + IP4_ID, id);
		store_be16(head + IP4_CHECK, (uint16_t)~csum_fold(s->ip + size + id));
	} else {
		store_be16(head + IP6_LENGTH, size - IP6_HEADER);
	}
}

/* before: payload bytes of the segments before this one */
static inline void gso_write_l4(const struct packet *p, const struct gso_sums *s, const struct segment *seg, uint32_t before, bool last)
{
	uint8_t *l4 = seg->head + p->flow.l4_offset;
	uint32_t size = p->flow.l4_size + seg->payload_size;
	uint64_t sum = csum_add(seg->payload, seg->payload_size, s->l4 + size);

	if (p->flow.proto == IPPROTO_TCP) {
		uint32_t seq = s->seq + before;
		uint8_t flags = s->flags;

		if (before)
			flags &= (uint8_t)~CWR;
		if (!last)
			flags &= (uint8_t)~(FIN | PSH);
		store_be32(l4 + TCP_SEQ, seq);
		l4[TCP_FLAGS] = flags;
		sum += (uint64_t)seq + flags;
	} else {
		store_be16(l4 + UDP_LENGTH, size);
		sum += size;
	}
	gso_store_check(p, l4, sum);
}

uint32_t gso_stride(const struct packet *p, uint32_t headroom)
{
	return (headroom + gso_header_size(p) + 15) & ~15u;
}

static void gso_one(const struct packet *p, struct segment *seg)
{
	memcpy(seg->head, p->data, seg->head_size);
	if (p->vnet.needs_csum) {
		uint8_t *l4 = seg->head + p->flow.l4_offset;
		uint32_t covered = gso_covered(p);
		uint64_t sum;

		store_be16(gso_check_field(p, l4), 0);
		sum = csum_add(l4, p->flow.l4_size, csum_pseudo(&p->flow, covered));
		gso_store_check(p, l4, csum_add(seg->payload, covered - p->flow.l4_size, sum));
	}
}

uint32_t gso_segment(const struct packet *p, uint32_t headroom, uint8_t *heads, size_t heads_size, struct segment *out, uint32_t max)
{
	uint32_t head_size = gso_header_size(p), payload = p->total - head_size, stride = gso_stride(p, headroom);
	uint32_t size = p->vnet.gso_type != GSO_NONE && p->vnet.gso_size < payload ? p->vnet.gso_size : payload;
	uint32_t count = size ? (payload + size - 1) / size : 1;
	struct gso_sums sums;

	if (unlikely(p->n_pieces || count > max || (size_t)count * stride > heads_size))
		return 0;
	for (uint32_t i = 0; i < count; i++) {
		out[i].head = heads + (size_t)i * stride + headroom;
		out[i].payload = p->data + head_size + i * size;
		out[i].head_size = head_size;
		out[i].payload_size = size;
	}
	if (count == 1) {
		gso_one(p, &out[0]);
		return 1;
	}
	out[count - 1].payload_size = payload - (count - 1) * size;
	gso_sum_headers(p, out[0].head, &sums);
	for (uint32_t i = 0; i < count; i++) {
		memcpy(out[i].head, p->data, head_size);
		gso_write_ip(p, &sums, out[i].head, i, head_size + out[i].payload_size);
		gso_write_l4(p, &sums, &out[i], i * size, i == count - 1);
	}
	return count;
}

/* ---- checksums of linear packets ----------------------------------------------------------------------------------------- */

void gso_finish_csum(struct packet *p)
{
	uint8_t *l4 = p->data + p->flow.l4_offset;
	uint32_t covered;

	if (!p->vnet.needs_csum)
		return;
	covered = gso_covered(p);
	store_be16(gso_check_field(p, l4), 0);
	gso_store_check(p, l4, csum_add(l4, covered, csum_pseudo(&p->flow, covered)));
	p->vnet.needs_csum = 0;
}

bool gso_verify_csum(const struct packet *p)
{
	const uint8_t *l4 = p->data + p->flow.l4_offset;
	bool ipv4 = p->flow.family == 4, ported = gso_is_ported(p);
	uint32_t covered, field;
	uint64_t pseudo;

	if (p->flow.flags & CANAL_FLOW_FRAG || !p->flow.l4_size)
		return true;
	if (!ported && p->flow.proto != (ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return true;
	covered = gso_covered(p);
	pseudo = ported || !ipv4 ? csum_pseudo(&p->flow, covered) : 0;
	field = load_be16(l4 + (!ported ? ICMP_CHECK : p->flow.proto == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK));
	if (p->flow.proto == IPPROTO_UDP && field == 0)
		return ipv4;                                     /* RFC 768: none; RFC 8200 8.1: forbidden */
	if (ported && field == csum_fold(pseudo))
		return true;
	return csum_fold(csum_add(l4, covered, pseudo)) == 0xffff;
}

void gso_make_partial(struct packet *p)
{
	uint8_t *l4, *field;
	uint32_t covered;

	if (unlikely(!gso_is_ported(p)))
		return;
	l4 = p->data + p->flow.l4_offset;
	field = gso_check_field(p, l4);
	/* What the kernel would sum ends with the packet: leave it alone when UDP's own length does not. */
	covered = p->total - p->flow.l4_offset;
	if (p->flow.proto == IPPROTO_UDP && (load_be16(field) == 0 || load_be16(l4 + UDP_LENGTH) != covered))
		return;
	store_be16(field, csum_fold(csum_pseudo(&p->flow, covered)));
	p->vnet.needs_csum = 1;
	p->vnet.csum_start = p->flow.l4_offset;
	p->vnet.csum_offset = (uint16_t)(field - l4);
	p->vnet.hdr_size = (uint16_t)gso_header_size(p);
}

/* ---- batch form ---------------------------------------------------------------------------------------------------------- */

/* Lay the segments one after the other. */
static int gso_write_all(const struct segment *segments, uint32_t n, uint8_t *out, size_t out_size, struct canal_span *spans)
{
	size_t used = 0;

	for (uint32_t i = 0; i < n; i++) {
		const struct segment *s = &segments[i];

		if ((size_t)s->head_size + s->payload_size > out_size - used)
			return CANAL_ERANGE;
		memcpy(out + used, s->head, s->head_size);
		memcpy(out + used + s->head_size, s->payload, s->payload_size);
		spans[i] = (struct canal_span){ (uint32_t)used, s->head_size + s->payload_size };
		used += spans[i].size;
	}
	return (int)n;
}

int canal_segment(const uint8_t *packet, uint32_t size, const struct canal_vnet *vnet,
                  uint8_t *out, size_t out_size, struct canal_span *spans, size_t n_spans)
{
	struct packet p = { .data = (uint8_t *)(uintptr_t)packet, .vnet = *vnet };   /* gso_segment() only reads it */
	uint32_t max = n_spans < CANAL_PACKET_MAX ? (uint32_t)n_spans : CANAL_PACKET_MAX;
	struct segment *segments;
	size_t heads_size;
	uint8_t *heads;
	int count = CANAL_ENOMEM;

	if (parse_packet(packet, size, &p.flow) != CANAL_DROP_NONE)
		return CANAL_EINVAL;
	p.size = p.total = p.flow.total_size;
	if ((vnet->needs_csum || vnet->gso_type) && !gso_is_ported(&p))
		return CANAL_EINVAL;
	if (vnet->gso_type && (!vnet->gso_size || !vnet->needs_csum))
		return CANAL_EINVAL;
	heads_size = (size_t)max * gso_stride(&p, 0);
	segments = malloc((size_t)max * sizeof(*segments) + heads_size);
	if (segments) {
		heads = (uint8_t *)(segments + max);
		count = (int)gso_segment(&p, 0, heads, heads_size, segments, max);
		count = count ? gso_write_all(segments, (uint32_t)count, out, out_size, spans) : CANAL_ERANGE;
	}
	free(segments);
	return count;
}
