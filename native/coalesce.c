/*
 * coalesce.c - wire packets -> superpackets, per flow and in order.
 *
 * Place:      after decapsulation, before everything that is done once a superpacket.
 * Structure:
 *
 *     wire packets    | IP | L4 | payload 0 |   | IP | L4 | payload 1 |   | IP | L4 | payload 2 |
 *                          |          |                       |                        |
 *     superpacket     |   head of the first   |           pieces[0]                pieces[1]          no byte is copied
 *
 *             The open superpackets stand in the order of their first packets. A packet meets the newest one that it is related to:
 *             it joins, or it opens one of its own behind it, and the older one, which nothing can join any more, leaves.
 *             Related: of the same flow and direction; a fragment, which has no ports, is related to everything between its addresses.
 * Invariants: segment(coalesce(x)) == x, up to which of its two forms a checksum of zero has: a packet joins only when its header is,
 *             byte for byte, what gso_segment() would write. So the order within a flow is kept, too; between flows mostly.
 *             While a superpacket is open everything but data, size and vnet says how it stands: flow.tcp_flags has the PSH of its last
 *             packet, total and n_pieces have grown. coalesce_finish() may be called twice.
 * Threads:    a coalescer belongs to one worker.
 * Limits:     CANAL_PACKET_MAX bytes, CANAL_SEGMENTS_MAX segments, COALESCE_OPEN_MAX open ones. Never: fragments, IPv4 options, IPv6
 *             extension headers, packets without payload, any TCP flag but ACK and PSH, UDP without checksum.
 * Source:     Linux net/ipv4/tcp_offload.c, udp_offload.c: what the receiving kernel would join; IPv4 ids must count up even with DF,
 *             or the segments would not come back the same.
 */
#include "coalesce.h"

#include <limits.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "parse.h"

enum { IP4_HEADER = 20, IP4_LENGTH = 2, IP4_ID = 4, IP4_FRAG = 6, IP4_ADDRS = 12 };
enum { IP6_HEADER = 40, IP6_LENGTH = 4, IP6_NEXT = 6, IP6_ADDRS = 8 };
enum { TCP_SEQ = 4, TCP_ACK_NO = 8, TCP_DATA_OFFSET = 12, TCP_FLAGS = 13, TCP_WINDOW = 14, TCP_CHECK = 16, TCP_URGENT = 18, TCP_OPTIONS = 20 };
enum { UDP_LENGTH = 4, UDP_CHECK = 6 };
enum { PSH = 8, ACK = 16 };
enum { SEGMENTS_MAX = PIECES_MAX + 1 < CANAL_SEGMENTS_MAX ? PIECES_MAX + 1 : CANAL_SEGMENTS_MAX };   /* what vnet_pull() takes back */

static inline uint32_t coalesce_header_size(const struct packet *p)
{
	return (uint32_t)p->flow.l4_offset + p->flow.l4_size;
}

/* ---- may they be one? ------------------------------------------------------------------------------------------------------ */

/* Could this packet be a segment at all? */
static inline bool coalesce_is_segment(const struct packet *p)
{
	const struct canal_flow *f = &p->flow;
	const uint8_t *l4 = p->data + f->l4_offset;

	if (f->flags & (CANAL_FLOW_FRAG | CANAL_FLOW_OPTIONS) || p->vnet.gso_type != GSO_NONE || p->total <= coalesce_header_size(p))
		return false;
	if (f->proto == IPPROTO_TCP)
		return (f->tcp_flags & ~PSH) == ACK && (l4[TCP_DATA_OFFSET] & 15) == 0;
	return f->proto == IPPROTO_UDP && load_be16(l4 + UDP_CHECK) != 0;
}

/* Equal but for what segmentation rewrites, and counting up where that counts? The headers have the same size. */
static inline bool coalesce_ip_fits(const struct packet *super, const uint8_t *a, const uint8_t *b)
{
	if (super->flow.family == 6)
		return memcmp(a, b, IP6_LENGTH) == 0 && memcmp(a + IP6_NEXT, b + IP6_NEXT, IP6_HEADER - IP6_NEXT) == 0;
	return memcmp(a, b, IP4_LENGTH) == 0 && memcmp(a + IP4_FRAG, b + IP4_FRAG, 4) == 0 &&
	       memcmp(a + IP4_ADDRS, b + IP4_ADDRS, 8) == 0 &&
	       load_be16(b + IP4_ID) == (uint16_t)(load_be16(a + IP4_ID) + super->n_pieces + 1);
}

static inline bool coalesce_tcp_fits(const struct packet *super, const uint8_t *a, const uint8_t *b, uint32_t before)
{
	return memcmp(a, b, TCP_SEQ) == 0 && load_be32(b + TCP_SEQ) == load_be32(a + TCP_SEQ) + before &&
	       memcmp(a + TCP_ACK_NO, b + TCP_ACK_NO, TCP_FLAGS - TCP_ACK_NO) == 0 &&
	       memcmp(a + TCP_WINDOW, b + TCP_WINDOW, TCP_CHECK - TCP_WINDOW) == 0 &&
	       memcmp(a + TCP_URGENT, b + TCP_URGENT, TCP_OPTIONS - TCP_URGENT) == 0 &&
	       memcmp(a + TCP_OPTIONS, b + TCP_OPTIONS, super->flow.l4_size - (size_t)TCP_OPTIONS) == 0;
}

static inline bool coalesce_udp_fits(const uint8_t *a, const uint8_t *b, uint32_t size)
{
	return memcmp(a, b, UDP_LENGTH) == 0 && load_be16(b + UDP_LENGTH) == size;
}

bool coalesce_fits(const struct packet *super, const struct packet *next)
{
	const struct canal_flow *f = &super->flow, *g = &next->flow;
	uint32_t header = coalesce_header_size(super), first = super->size - header, payload = next->total - header;
	const uint8_t *a = super->data, *b = next->data;

	if (f->family != g->family || f->proto != g->proto || f->l4_offset != g->l4_offset || f->l4_size != g->l4_size)
		return false;
	if (!coalesce_is_segment(super) || !coalesce_is_segment(next) || next->n_pieces)
		return false;
	if (payload > first || super->total + payload > CANAL_PACKET_MAX || super->n_pieces + 1 >= SEGMENTS_MAX || !super->pieces)
		return false;
	if (super->n_pieces && super->pieces[super->n_pieces - 1].iov_len < first)
		return false;                                    /* only the last one may be short */
	if (f->proto == IPPROTO_TCP && f->tcp_flags & PSH)
		return false;
	if (!coalesce_ip_fits(super, a, b))
		return false;
	a += f->l4_offset;
	b += f->l4_offset;
	if (f->proto == IPPROTO_TCP)
		return coalesce_tcp_fits(super, a, b, super->total - header);
	return load_be16(a + UDP_LENGTH) == first + f->l4_size && coalesce_udp_fits(a, b, payload + f->l4_size);
}

/* ---- join ---------------------------------------------------------------------------------------------------------------- */

void coalesce_append(struct packet *super, const struct packet *next)
{
	uint32_t header = coalesce_header_size(next);

	super->pieces[super->n_pieces].iov_base = next->data + header;
	super->pieces[super->n_pieces].iov_len = next->total - header;
	super->n_pieces++;
	super->total += next->total - header;
	super->flow.total_size = super->total;
	super->flow.tcp_flags |= next->flow.tcp_flags;
}

/* Lengths and PSH into the head, the pseudo-header sum into the checksum. */
static void coalesce_write_head(struct packet *super, uint32_t check_offset)
{
	uint8_t *ip = super->data, *l4 = ip + super->flow.l4_offset;
	uint32_t l4_bytes = super->total - super->flow.l4_offset;

	if (super->flow.family == 4) {
		store_be16(ip + IP4_LENGTH, super->total);
		csum_ipv4(ip, IP4_HEADER);
	} else {
		store_be16(ip + IP6_LENGTH, super->total - IP6_HEADER);
	}
	if (super->flow.proto == IPPROTO_TCP)
		l4[TCP_FLAGS] = super->flow.tcp_flags;
	else
		store_be16(l4 + UDP_LENGTH, l4_bytes);
	store_be16(l4 + check_offset, csum_fold(csum_pseudo(&super->flow, l4_bytes)));
}

void coalesce_finish(struct packet *super)
{
	bool tcp = super->flow.proto == IPPROTO_TCP;
	uint32_t header = coalesce_header_size(super);

	if (super->n_pieces == 0)
		return;
	super->vnet = (struct canal_vnet){
		.needs_csum = 1,
		.gso_type = !tcp ? GSO_UDP_L4 : super->flow.family == 4 ? GSO_TCPV4 : GSO_TCPV6,
		.gso_size = (uint16_t)(super->size - header),
		.csum_start = super->flow.l4_offset,
		.csum_offset = tcp ? TCP_CHECK : UDP_CHECK,
		.hdr_size = (uint16_t)header,
		.segments = (uint16_t)(super->n_pieces + 1),
	};
	coalesce_write_head(super, super->vnet.csum_offset);
}

/* ---- the open ones --------------------------------------------------------------------------------------------------------- */

static inline bool coalesce_same_flow(const struct canal_flow *a, const struct canal_flow *b)
{
	_Static_assert(offsetof(struct canal_flow, proto) == 36, "addresses, ports and protocol are adjacent");
	return memcmp(a, b, offsetof(struct canal_flow, proto) + 1) == 0;
}

/* Must they keep their order? */
static inline bool coalesce_related(const struct packet *a, const struct packet *b)
{
	if (unlikely((a->flow.flags | b->flow.flags) & CANAL_FLOW_FRAG))
		return memcmp(&a->flow, &b->flow, offsetof(struct canal_flow, sport_be)) == 0;
	return a->hash == b->hash && coalesce_same_flow(&a->flow, &b->flow);
}

static struct packet *coalesce_remove(struct coalescer *c, uint32_t index)
{
	struct packet *p = c->open[index];

	c->n_open--;
	memmove(c->open + index, c->open + index + 1, (c->n_open - index) * sizeof(*c->open));
	return p;
}

/* May open[index] leave before older ones? */
static bool coalesce_is_oldest_of_its_kind(const struct coalescer *c, uint32_t index)
{
	for (uint32_t i = 0; i < index; i++)
		if (coalesce_related(c->open[i], c->open[index]))
			return false;
	return true;
}

bool coalesce_offer(struct coalescer *c, struct packet *p, struct packet *closed[2], uint32_t *n_closed)
{
	bool may_join = p->flow.proto == IPPROTO_TCP || c->udp;
	uint32_t i = c->n_open;

	*n_closed = 0;
	while (i-- > 0) {
		struct packet *super = c->open[i];

		if (likely(may_join && super->hash == p->hash && coalesce_fits(super, p))) {
			coalesce_append(super, p);
			return true;
		}
		if (!coalesce_related(super, p))
			continue;
		if (coalesce_is_oldest_of_its_kind(c, i))
			closed[(*n_closed)++] = coalesce_remove(c, i);
		break;
	}
	if (c->n_open == COALESCE_OPEN_MAX)
		closed[(*n_closed)++] = coalesce_remove(c, 0);
	c->open[c->n_open++] = p;
	return false;
}

uint32_t coalesce_flush(struct coalescer *c, struct packet *closed[])
{
	uint32_t n = c->n_open;

	memcpy(closed, c->open, n * sizeof(*closed));
	c->n_open = 0;
	return n;
}

/* ---- batch form ---------------------------------------------------------------------------------------------------------- */

enum { SLOTS = COALESCE_OPEN_MAX + 1 };        /* the open ones and the one in hand */

struct coalesce_job {
	struct coalescer coalescer;
	struct packet slots[SLOTS];
	struct iovec pieces[SLOTS][PIECES_MAX];
	struct packet *unused[SLOTS];
	uint32_t n_unused;
	uint8_t *out;
	size_t out_size, used;
	struct canal_span *spans;
	struct canal_vnet *vnets;
	size_t n, n_max;
};

/* The head is finished in its copy: the input stays as it is. */
static bool coalesce_write(struct coalesce_job *job, struct packet *p)
{
	uint8_t *at = job->out + job->used;

	if (job->n == job->n_max || p->total > job->out_size - job->used)
		return false;
	memcpy(at, p->data, p->size);
	p->data = at;
	coalesce_finish(p);
	at += p->size;
	for (uint32_t i = 0; i < p->n_pieces; i++) {
		memcpy(at, p->pieces[i].iov_base, p->pieces[i].iov_len);
		at += p->pieces[i].iov_len;
	}
	job->spans[job->n] = (struct canal_span){ (uint32_t)job->used, p->total };
	job->vnets[job->n] = p->vnet;
	job->used += p->total;
	job->n++;
	job->unused[job->n_unused++] = p;
	return true;
}

static bool coalesce_write_all(struct coalesce_job *job, struct packet *const *closed, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (!coalesce_write(job, closed[i]))
			return false;
	return true;
}

static int coalesce_take(struct coalesce_job *job, const uint8_t *bytes, struct canal_span span, uint32_t flags)
{
	struct packet *p = job->unused[--job->n_unused], *closed[COALESCE_OPEN_MAX];
	uint32_t n_closed;

	*p = (struct packet){ .data = (uint8_t *)(uintptr_t)bytes + span.offset, .pieces = p->pieces };
	if (parse_packet(p->data, span.size, &p->flow) != CANAL_DROP_NONE)
		return CANAL_EINVAL;
	p->size = p->total = p->flow.total_size;
	p->vnet = (struct canal_vnet){ .hdr_size = (uint16_t)coalesce_header_size(p), .segments = 1 };
	p->hash = csum_fold(csum_pseudo(&p->flow, (uint32_t)p->flow.sport_be << 16 | p->flow.dport_be));
	if (flags & CANAL_DP_NO_COALESCE)
		return coalesce_write(job, p) ? CANAL_OK : CANAL_ERANGE;
	if (coalesce_offer(&job->coalescer, p, closed, &n_closed))
		job->unused[job->n_unused++] = p;
	return coalesce_write_all(job, closed, n_closed) ? CANAL_OK : CANAL_ERANGE;
}

int canal_coalesce(const uint8_t *bytes, const struct canal_span *spans, size_t n, uint32_t flags,
                   uint8_t *out, size_t out_size, struct canal_span *out_spans, struct canal_vnet *out_vnets, size_t n_out)
{
	struct coalesce_job *job = calloc(1, sizeof(*job));
	struct packet *closed[COALESCE_OPEN_MAX];
	int result = CANAL_OK;

	if (!job)
		return CANAL_ENOMEM;
	job->coalescer.udp = !(flags & CANAL_DP_NO_USO_WRITE);
	for (; job->n_unused < SLOTS; job->n_unused++) {
		job->slots[job->n_unused].pieces = job->pieces[job->n_unused];
		job->unused[job->n_unused] = &job->slots[job->n_unused];
	}
	job->out = out;
	job->out_size = out_size;
	job->spans = out_spans;
	job->vnets = out_vnets;
	job->n_max = n_out < INT_MAX ? n_out : INT_MAX;
	for (size_t i = 0; i < n && result == CANAL_OK; i++)
		result = coalesce_take(job, bytes, spans[i], flags);
	if (result == CANAL_OK && !coalesce_write_all(job, closed, coalesce_flush(&job->coalescer, closed)))
		result = CANAL_ERANGE;
	if (result == CANAL_OK)
		result = (int)job->n;
	free(job);
	return result;
}
