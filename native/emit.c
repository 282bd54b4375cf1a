/*
 * emit.c - a judged packet leaves: TTL, MSS, MTU, device or tunnel.
 *
 * Place:      after judge_packet(). Called by pipeline.c.
 * Structure:
 *
 *     from a TUN: TTL - 1 ─┬─► TUN   vnet header before it, one write for head and pieces
 *     from a peer ─────────┴─► VTEP  MSS ─► MTU ─► segment ─► encap push ─► tx queue
 *                                             └─ too big: ICMP error, or fragments when DF is clear
 *
 * Invariants: TTL goes down once on the way through the overlay, where the packet enters it. What is delivered to a TUN keeps the
 *             sender's segment size; the MTU counts only towards a tunnel.
 * Threads:    worker.
 * Source:     RFC 1812 4.2.2.9 (TTL), 5.2.7 (fragmentation), RFC 4459 (tunnel MTU), RFC 879 / 6691 (MSS).
 */
#include "emit.h"

#include <errno.h>
#include <string.h>

#include "csum.h"
#include "ecn.h"
#include "encap.h"
#include "parse.h"
#include "reset.h"
#include "tx.h"
#include "vnet.h"

enum { TCP_SEQ = 4, TCP_SYN = 2, MSS_OPTION = 2, MSS_OPTION_SIZE = 4 };

/* Make sure that the next takes, `size` bytes in all, need no flush between them. */
static void heads_reserve(struct worker *w, uint32_t size)
{
	if (w->heads_used + size > HEADS_BYTES) {
		tx_flush(w);
		w->heads_used = 0;
	}
}

/* Room for `size` bytes of headers, good until the next flush. */
static uint8_t *heads_take(struct worker *w, uint32_t size)
{
	uint8_t *heads;

	heads_reserve(w, size);
	heads = w->heads + w->heads_used;
	w->heads_used += (size + 15) & ~15u;
	return heads;
}

/* ---- towards a TUN ------------------------------------------------------------------------------------------------------- */

static enum canal_drop tun_drop(int error)
{
	switch (error) {
	case EAGAIN:
	case ENOBUFS:
	case ENOMEM:
		return CANAL_DROP_TX_AGAIN;
	case EIO:            /* the device is down */
	case EBADF:
	case EBADFD:         /* the device is gone */
	case ENODEV:
		return CANAL_DROP_PORT_DOWN;
	default:
		return CANAL_DROP_TX_ERROR;
	}
}

static void tun_sent(struct worker *w, struct port *port, uint32_t packets, uint32_t bytes)
{
	bool pod = port->kind == CANAL_PORT_POD;

	worker_count(w, pod ? CANAL_TX_POD : CANAL_TX_HOST, packets);
	worker_count(w, pod ? CANAL_TX_POD_BYTES : CANAL_TX_HOST_BYTES, bytes);
	if (packets > 1)
		worker_count(w, CANAL_TX_SUPERPACKETS, 1);
	stat_add(&port->stats.tx_packets, packets);
	stat_add(&port->stats.tx_bytes, bytes);
}

static void tun_put(struct worker *w, struct port *port, const struct packet *p, const struct iovec *iov, uint32_t n_iov, uint32_t packets, uint32_t bytes)
{
	int error = w->io->tun_write(w, port, iov, n_iov);

	if (likely(error == 0)) {
		tun_sent(w, port, packets, bytes);
		return;
	}
	w->counters.own.drop[tun_drop(-error)] += packets;
	if (target_is(p->in, CANAL_TARGET_PORT))
		stat_add(&worker_port(w, p->in)->stats.drops, packets);
}

/* A UDP superpacket for a kernel that does not take one: write its segments. */
static void tun_segments(struct worker *w, struct port *port, struct packet *p)
{
	uint32_t room = gso_stride(p, CANAL_VNET_HDR_SIZE) * p->vnet.segments;
	uint32_t n = gso_segment(p, CANAL_VNET_HDR_SIZE, heads_take(w, room), room, w->segments, CANAL_SEGMENTS_MAX);

	if (n == 0) {
		worker_drop(w, p, CANAL_DROP_BAD_GSO);
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct segment *s = &w->segments[i];
		struct iovec iov[2] = {
			{ .iov_base = s->head - CANAL_VNET_HDR_SIZE, .iov_len = CANAL_VNET_HDR_SIZE + s->head_size },
			{ .iov_base = (void *)(uintptr_t)s->payload, .iov_len = s->payload_size },
		};

		memset(iov[0].iov_base, 0, CANAL_VNET_HDR_SIZE);
		tun_put(w, port, p, iov, s->payload_size ? 2 : 1, 1, s->head_size + s->payload_size);
	}
}

static void emit_tun(struct worker *w, struct packet *p)
{
	struct port *port = worker_port(w, p->out);
	uint8_t vnet[CANAL_VNET_HDR_SIZE];   /* apart: in front of the data another segment of the same datagram may end */
	struct iovec iov[2 + PIECES_MAX];

	if (unlikely(atomic_load_explicit(&port->state, memory_order_acquire) != PORT_LIVE)) {
		worker_drop(w, p, CANAL_DROP_PORT_DOWN);
		return;
	}
	if (unlikely(p->vnet.gso_type == GSO_UDP_L4 && (w->dp->config.flags & CANAL_DP_NO_USO_WRITE))) {
		tun_segments(w, port, p);
		return;
	}
	vnet_push(vnet, &p->vnet);
	iov[0] = (struct iovec){ .iov_base = vnet, .iov_len = sizeof vnet };
	iov[1] = (struct iovec){ .iov_base = p->data, .iov_len = p->size };
	if (p->n_pieces)
		memcpy(iov + 2, p->pieces, p->n_pieces * sizeof *iov);
	tun_put(w, port, p, iov, 2 + p->n_pieces, p->vnet.segments, p->total);
}

/* ---- towards a VTEP ------------------------------------------------------------------------------------------------------ */

/* A linear packet with `headroom` bytes before it, checksum final. */
static void tunnel_plain(struct worker *w, struct port *port, uint32_t vtep, uint8_t tos, uint8_t *data, uint32_t size, uint8_t family, uint32_t packets)
{
	uint32_t overhead = encap_push(data, family, &w->tables->node, &w->tables->vteps[vtep]);
	struct iovec iov = { .iov_base = data - overhead, .iov_len = size + overhead };

	tx_append(w, port, vtep, tos, &iov, 1, packets, size);
}

static void tunnel_segments(struct worker *w, struct port *port, uint32_t vtep, uint8_t tos, const struct packet *p)
{
	uint32_t stride = gso_stride(p, OUTER_HEADROOM), n;
	uint8_t *heads = heads_take(w, stride * p->vnet.segments);

	n = gso_segment(p, OUTER_HEADROOM, heads, (size_t)stride * p->vnet.segments, w->segments, CANAL_SEGMENTS_MAX);
	if (unlikely(n != p->vnet.segments)) {
		worker_drop(w, p, CANAL_DROP_BAD_GSO);
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct segment *s = &w->segments[i];
		uint32_t overhead = encap_push(s->head, p->flow.family, &w->tables->node, &w->tables->vteps[vtep]);
		struct iovec iov[2] = {
			{ .iov_base = s->head - overhead, .iov_len = overhead + s->head_size },
			{ .iov_base = (void *)(uintptr_t)s->payload, .iov_len = s->payload_size },
		};

		tx_append(w, port, vtep, tos, iov, 2, 1, s->head_size + s->payload_size);
	}
}

/* Too big, DF clear: IPv4 fragments. The first counts for the packet. */
static void tunnel_fragments(struct worker *w, struct port *port, uint32_t vtep, uint8_t tos, const struct packet *p, uint32_t mtu)
{
	struct canal_span spans[CANAL_SEGMENTS_MAX];
	uint32_t count = p->size / ((mtu - 60) & ~7u) + 2, room = p->size + count * (OUTER_HEADROOM + 64);
	uint8_t *out = heads_take(w, room);
	uint32_t n = frag_split(p, mtu, OUTER_HEADROOM, out, room, spans, CANAL_SEGMENTS_MAX);

	if (n == 0) {
		worker_drop(w, p, CANAL_DROP_TOO_BIG);
		return;
	}
	worker_count(w, CANAL_FRAGMENTS_CREATED, n);
	for (uint32_t i = 0; i < n; i++)
		tunnel_plain(w, port, vtep, tos, out + spans[i].offset, spans[i].size, 4, i == 0);
}

/* A superpacket whose segments are too big and may be fragmented: cut it into plain packets first. */
static void tunnel_segments_fragmented(struct worker *w, struct port *port, uint32_t vtep, uint8_t tos, const struct packet *p, uint32_t mtu)
{
	uint32_t stride = gso_stride(p, OUTER_HEADROOM), n;
	uint8_t *heads;

	/* heads of all segments, then each segment twice: whole, and as fragments of at least half the MTU's payload */
	heads_reserve(w, 3 * stride * p->vnet.segments + 2 * p->total + (p->total / (mtu / 2) + p->vnet.segments * 2u) * (OUTER_HEADROOM + 80));
	heads = heads_take(w, stride * p->vnet.segments);
	n = gso_segment(p, OUTER_HEADROOM, heads, (size_t)stride * p->vnet.segments, w->segments, CANAL_SEGMENTS_MAX);
	if (n != p->vnet.segments) {
		worker_drop(w, p, CANAL_DROP_BAD_GSO);
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct segment *s = &w->segments[i];
		struct packet one = *p;

		one.size = one.total = s->head_size + s->payload_size;
		one.vnet = (struct canal_vnet){ .segments = 1 };
		one.data = heads_take(w, OUTER_HEADROOM + one.size) + OUTER_HEADROOM;
		one.flow.total_size = one.size;
		memcpy(one.data, s->head, s->head_size);
		memcpy(one.data + s->head_size, s->payload, s->payload_size);
		tunnel_fragments(w, port, vtep, tos, &one, mtu);
	}
}

/* Lower the MSS that a SYN offers so that full segments fit the tunnel; never raise it. */
static void clamp_mss(struct packet *p, uint32_t mtu)
{
	uint8_t *tcp = p->data + p->flow.l4_offset, *end = tcp + p->flow.l4_size;
	uint32_t most = mtu - (p->flow.family == 4 ? 40 : 60);

	for (uint8_t *o = tcp + 20; o < end && *o != 0;) {
		if (*o == 1) {
			o++;
			continue;
		}
		if (end - o < 2 || o[1] < 2 || o[1] > end - o)
			return;
		if (o[0] == MSS_OPTION && o[1] == MSS_OPTION_SIZE) {
			uint16_t mss = load_be16(o + 2);

			if (mss <= most)
				return;
			store_be16(o + 2, most);
			if (!p->vnet.needs_csum) {
				bool odd = (o + 2 - tcp) & 1;
				uint16_t before = odd ? __builtin_bswap16(mss) : mss;
				uint16_t after = odd ? __builtin_bswap16((uint16_t)most) : (uint16_t)most;

				store_be16(tcp + 16, csum_update16(load_be16(tcp + 16), before, after));
			}
			return;
		}
		o += o[1];
	}
}

static void clamp_syn(const struct worker *w, struct packet *p)
{
	if (likely(p->flow.proto != IPPROTO_TCP || !(p->flow.tcp_flags & TCP_SYN)) || !w->tables->node.mss_clamp || (p->flow.flags & CANAL_FLOW_FRAG))
		return;
	if (target_is(p->out, CANAL_TARGET_VTEP))
		clamp_mss(p, w->tables->vteps[p->out & CANAL_TARGET_INDEX].mtu_bytes);
	if (target_is(p->in, CANAL_TARGET_VTEP))
		clamp_mss(p, w->tables->vteps[p->in & CANAL_TARGET_INDEX].mtu_bytes);
}

/* Is that a large packet that was sent before? The path may have swallowed it. */
static void note_stall(struct worker *w, struct port *port, const struct canal_vtep *vtep, const struct packet *p, uint32_t size)
{
	uint32_t header = (uint32_t)p->flow.l4_offset + p->flow.l4_size;

	if (p->flow.proto != IPPROTO_TCP || size <= vtep->mtu_bytes / 2u || p->total <= header || (p->flow.flags & CANAL_FLOW_FRAG))
		return;
	if (unlikely(stall_again(&w->stall, p->hash, load_be32(p->data + p->flow.l4_offset + TCP_SEQ), p->total - header, w->now_ms)))
		worker_event(w, CANAL_EVENT_STALLED, port, vtep->addr, 0);
}

static void emit_tunnel(struct worker *w, struct packet *p)
{
	uint32_t index = p->out & CANAL_TARGET_INDEX;
	const struct canal_vtep *vtep = &w->tables->vteps[index];
	struct port *port = tx_port(w, vtep, p->hash);
	uint8_t tos = ecn_encap(p->flow.tos);
	bool gso = p->vnet.gso_type != GSO_NONE;
	uint32_t size = gso ? (uint32_t)p->vnet.hdr_size + p->vnet.gso_size : p->total;

	if (unlikely(!port)) {
		worker_drop(w, p, CANAL_DROP_PORT_DOWN);
		return;
	}
	if (unlikely(size > vtep->mtu_bytes)) {
		if (p->flow.flags & CANAL_FLOW_DF) {
			emit_refusal(w, p, CANAL_DROP_TOO_BIG);
		} else if (gso) {
			tunnel_segments_fragmented(w, port, index, tos, p, vtep->mtu_bytes);
		} else {
			gso_finish_csum(p);
			tunnel_fragments(w, port, index, tos, p, vtep->mtu_bytes);
		}
		return;
	}
	note_stall(w, port, vtep, p, size);
	if (gso) {
		tunnel_segments(w, port, index, tos, p);
		return;
	}
	gso_finish_csum(p);
	tunnel_plain(w, port, index, tos, p->data, p->size, p->flow.family, 1);
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------ */

static bool refusal_of(enum canal_drop reason, enum icmp_kind *kind)
{
	switch (reason) {
	case CANAL_DROP_NO_ROUTE:
		*kind = ICMP_NO_ROUTE;
		return true;
	case CANAL_DROP_TTL:
		*kind = ICMP_TIME_EXCEEDED;
		return true;
	case CANAL_DROP_TOO_BIG:
		*kind = ICMP_TOO_BIG;
		return true;
	case CANAL_DROP_REJECTED:
		*kind = ICMP_PROHIBITED;
		return true;
	default:
		return false;
	}
}

/* Our own packet, back to where p came from. */
static void originate(struct worker *w, const struct packet *p, uint8_t *data, uint32_t size)
{
	struct packet reply = { .data = data, .size = size, .total = size, .out = p->in, .hash = p->hash, .vnet = { .segments = 1 } };

	worker_count(w, CANAL_ORIGINATED, 1);
	if (parse_packet(data, size, &reply.flow))
		worker_drop(w, &reply, CANAL_DROP_BAD_IP);
	else if (target_is(p->in, CANAL_TARGET_PORT))
		emit_tun(w, &reply);
	else
		emit_tunnel(w, &reply);
}

/* In whose name p's sender is told. The host believes nothing that comes from its own address, which is the router's: it hears it from
 * the other end, as kernel tunnels do it. */
static const uint8_t *refuser(struct worker *w, const struct packet *p)
{
	if (target_is(p->in, CANAL_TARGET_PORT) && worker_port(w, p->in)->kind == CANAL_PORT_HOST)
		return p->flow.dst;
	return p->flow.family == 4 ? w->tables->node.router4 : w->tables->node.router6;
}

/* A peer's router told its sender everything but what our policy says; that counts for the pod that refuses. */
static struct port *refusing_port(struct worker *w, const struct packet *p, enum canal_drop reason)
{
	if (target_is(p->in, CANAL_TARGET_PORT))
		return worker_port(w, p->in);
	return reason == CANAL_DROP_REJECTED && target_is(p->out, CANAL_TARGET_PORT) ? worker_port(w, p->out) : NULL;
}

void emit_refusal(struct worker *w, struct packet *p, enum canal_drop reason)
{
	uint32_t mtu = target_is(p->out, CANAL_TARGET_VTEP) ? w->tables->vteps[p->out & CANAL_TARGET_INDEX].mtu_bytes : 0;
	struct port *port = refusing_port(w, p, reason);
	enum icmp_kind kind;
	uint8_t *out;
	uint32_t size;

	worker_drop(w, p, reason);
	if (!refusal_of(reason, &kind) || !port)
		return;
	out = heads_take(w, OUTER_HEADROOM + ICMP_ERROR_MAX) + OUTER_HEADROOM;
	size = reason == CANAL_DROP_REJECTED && p->flow.proto == IPPROTO_TCP ? tcp_reset(p, out) : icmp_error(p, kind, mtu, refuser(w, p), out);
	if (size == 0)
		return;
	if (icmp_allow(&port->icmp, w->now_ms))
		originate(w, p, out, size);
	else
		worker_count(w, CANAL_ICMP_LIMITED, 1);
}

/* ---- all ----------------------------------------------------------------------------------------------------------------- */

static void decrement_ttl(struct packet *p)
{
	if (p->flow.family == 4) {
		uint32_t check = (uint32_t)load_be16(p->data + 10) + 0x0100;

		p->data[8]--;
		store_be16(p->data + 10, (check + (check >> 16)) & 0xffff);
	} else {
		p->data[7]--;
	}
}

void emit_packet(struct worker *w, struct packet *p)
{
	if (target_is(p->in, CANAL_TARGET_PORT)) {
		if (unlikely(p->flow.ttl <= 1)) {
			emit_refusal(w, p, CANAL_DROP_TTL);
			return;
		}
		decrement_ttl(p);
	}
	clamp_syn(w, p);
	if (target_is(p->out, CANAL_TARGET_PORT))
		emit_tun(w, p);
	else
		emit_tunnel(w, p);
}
