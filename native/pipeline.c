/*
 * pipeline.c - THE ORDER of the stages, and nothing else.
 *
 * Structure:
 *
 *     from a TUN        parse ─► vnet ──────────────────────────────────────┐
 *     from the underlay peer? ─► split ─► decap ─► parse ─► ECN ─► coalesce ─┴─► flow lookup ─► judge ─► emit ─► flush
 *
 * Invariants: each packet that enters is counted as received once, and leaves as exactly one of: sent, dropped with one reason.
 *             Packets of one flow leave in the order in which they came.
 * Threads:    worker.
 */
#include "pipeline.h"

#include <string.h>

#include "csum.h"
#include "ecn.h"
#include "emit.h"
#include "encap.h"
#include "judge.h"
#include "parse.h"
#include "tx.h"
#include "vnet.h"

/* ---- common to both ways ------------------------------------------------------------------------------------------------- */

static void forward(struct worker *w, struct packet *const *packets, uint32_t n)
{
	if (n == 0)
		return;
	w->inserted = false;
	ct_lookup(w->ct, packets, n);
	for (uint32_t i = 0; i < n; i++) {
		enum canal_drop drop = judge_packet(w, packets[i]);

		if (likely(!drop))
			emit_packet(w, packets[i]);
		else
			emit_refusal(w, packets[i], drop);
	}
}

static void finish(struct worker *w)
{
	tx_flush(w);
	w->heads_used = 0;
}

static void received(struct worker *w, struct port *port, enum canal_counter packets, const struct packet *p)
{
	worker_count(w, packets, p->vnet.segments);
	worker_count(w, packets + (CANAL_RX_POD_BYTES - CANAL_RX_POD), p->total);
	if (p->vnet.segments > 1)
		worker_count(w, CANAL_RX_SUPERPACKETS, 1);
	stat_add(&port->stats.rx_packets, p->vnet.segments);
	stat_add(&port->stats.rx_bytes, p->total);
}

/* ---- from a TUN ---------------------------------------------------------------------------------------------------------- */

static enum canal_drop read_tun_packet(struct packet *p)
{
	enum canal_drop drop = parse_packet(p->data, p->size, &p->flow);

	if (unlikely(drop))
		return drop;
	p->size = p->total = p->flow.total_size;
	return vnet_pull(p->data - CANAL_VNET_HDR_SIZE, &p->flow, &p->vnet);
}

void pipeline_from_tun(struct worker *w, struct port *port, uint32_t n)
{
	enum canal_counter counter = port->kind == CANAL_PORT_POD ? CANAL_RX_POD : CANAL_RX_HOST;
	struct packet *good[CANAL_BATCH_MAX];
	uint32_t n_good = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct packet *p = &w->packets[i];
		enum canal_drop drop;

		p->total = p->size;
		p->n_pieces = 0;
		p->in = CANAL_TARGET_PORT | port->index;
		p->out = CANAL_TARGET_NONE;
		p->ct = NULL;
		p->vnet = (struct canal_vnet){ .segments = 1 };
		drop = read_tun_packet(p);
		if (unlikely(drop))
			p->vnet.segments = 1;
		received(w, port, counter, p);
		if (unlikely(drop))
			worker_drop(w, p, drop);
		else
			good[n_good++] = p;
	}
	forward(w, good, n_good);
	finish(w);
}

/* ---- from the underlay --------------------------------------------------------------------------------------------------- */

/* Packets that were taken off datagrams and wait for forward(), in order; open superpackets wait in the coalescer. */
struct taken {
	uint32_t n_slots;                             /* rows of w->packets in use */
	uint32_t n;
	struct packet *ready[CANAL_BATCH_MAX];
};

static void taken_flush(struct worker *w, struct taken *t)
{
	t->n += coalesce_flush(&w->coalescer, t->ready + t->n);
	for (uint32_t i = 0; i < t->n; i++)
		coalesce_finish(t->ready[i]);
	forward(w, t->ready, t->n);
	t->n = t->n_slots = 0;
}

static struct packet *slot_take(struct worker *w, struct taken *t, uint32_t in)
{
	struct packet *p;

	if (t->n_slots == CANAL_BATCH_MAX)
		taken_flush(w, t);
	p = &w->packets[t->n_slots];
	p->pieces = w->pieces[t->n_slots];
	p->n_pieces = 0;
	p->in = in;
	p->out = CANAL_TARGET_NONE;
	p->ct = NULL;
	p->vnet = (struct canal_vnet){ .segments = 1 };
	t->n_slots++;
	return p;
}

/* The TUN is told to trust the inner checksum: did the outer one cover it? It may be zero, which nobody tells us; UDP_GRO gathers only
 * datagrams that have one. */
static bool checksum_holds(const struct worker *w, const struct datagram *d, const struct packet *p)
{
	return (d->gso_size != 0 && likely(!(w->dp->config.flags & CANAL_DP_STRICT_CSUM))) || gso_verify_csum(p);
}

/* The inner packet of `size` bytes at data: read it, and repair what the outer header says about it. */
static enum canal_drop read_inner(struct worker *w, struct packet *p, const struct datagram *d, uint8_t *data, uint32_t size)
{
	enum canal_drop drop;

	p->data = data;
	p->size = p->total = size;
	drop = parse_packet(data, size, &p->flow);
	if (unlikely(drop))
		return drop;
	p->size = p->total = p->flow.total_size;
	if (unlikely(!checksum_holds(w, d, p)))
		return CANAL_DROP_BAD_CSUM;
	return likely(d->tos == 0) ? CANAL_DROP_NONE : ecn_decap(p, d->tos);
}

/* A superpacket that a kernel tunnel sent whole (its segments were never cut on the way): size every segment as its sender would have. */
static void restore_superpacket(struct packet *p, uint32_t gso_size, uint32_t mtu)
{
	uint32_t header = (uint32_t)p->flow.l4_offset + p->flow.l4_size, payload = p->total - header;
	bool tcp = p->flow.proto == IPPROTO_TCP;

	if ((p->flow.flags & CANAL_FLOW_FRAG) || !p->flow.l4_size || (!tcp && p->flow.proto != IPPROTO_UDP) || mtu <= header)
		return;
	if (gso_size == 0 && tcp && p->total > mtu)
		gso_size = mtu - header;
	if (gso_size == 0 || payload <= gso_size || payload > gso_size * CANAL_SEGMENTS_MAX || !p->vnet.needs_csum)
		return;
	p->vnet.gso_type = !tcp ? GSO_UDP_L4 : p->flow.family == 4 ? GSO_TCPV4 : GSO_TCPV6;
	p->vnet.gso_size = (uint16_t)gso_size;
	p->vnet.hdr_size = (uint16_t)header;
	p->vnet.segments = (uint16_t)((payload + gso_size - 1) / gso_size);
}

static void take_inner(struct worker *w, struct port *port, struct taken *t, struct packet *p)
{
	struct packet *closed[2];
	uint32_t n_closed = 0;

	received(w, port, CANAL_RX_UNDERLAY, p);
	if (w->dp->config.flags & CANAL_DP_NO_COALESCE) {
		t->ready[t->n++] = p;
	} else if (p->vnet.segments > 1) {
		t->n += coalesce_flush(&w->coalescer, t->ready + t->n);
		t->ready[t->n++] = p;
	} else {
		p->hash = ct_hash(w->ct, &p->flow);
		if (coalesce_offer(&w->coalescer, p, closed, &n_closed))
			t->n_slots--;
		for (uint32_t i = 0; i < n_closed; i++)
			t->ready[t->n++] = closed[i];
	}
}

/* One outer payload: strip, read, hand on. */
static void take_payload(struct worker *w, struct port *port, struct taken *t, const struct datagram *d, uint32_t in, uint8_t *data, uint32_t size,
                         uint32_t inner_gso_size)
{
	struct packet *p = slot_take(w, t, in);
	enum canal_drop drop;
	uint32_t inner_size = 0;
	uint8_t *inner = data;

	drop = encap_pull(port->encap, data, size, &w->tables->node, &inner, &inner_size);
	p->size = p->total = size;
	if (likely(!drop))
		drop = read_inner(w, p, d, inner, inner_size);
	if (unlikely(drop)) {
		received(w, port, CANAL_RX_UNDERLAY, p);
		worker_drop(w, p, drop);
		t->n_slots--;
		return;
	}
	gso_make_partial(p);
	restore_superpacket(p, inner_gso_size, w->tables->vteps[in & CANAL_TARGET_INDEX].mtu_bytes);
	take_inner(w, port, t, p);
}

/* Is this receive one inner packet larger than the segment size that came with it? Then that size is the inner packet's own (a kernel
 * tunnel's superpacket), and cutting there would destroy it. */
static bool one_superpacket(struct worker *w, const struct port *port, const struct datagram *d)
{
	struct canal_flow flow;
	uint8_t *inner;
	uint32_t inner_size;

	if (encap_pull(port->encap, d->data, d->size, &w->tables->node, &inner, &inner_size))
		return false;
	if (parse_packet(inner, inner_size, &flow))
		return false;
	return flow.total_size + encap_overhead(port->encap) > d->gso_size;
}

static void refuse_datagram(struct worker *w, struct port *port, const struct datagram *d, enum canal_drop reason)
{
	struct packet p = { .in = CANAL_TARGET_NONE, .total = d->size, .vnet = { .segments = 1 } };

	if (d->gso_size && d->size > d->gso_size)
		p.vnet.segments = (uint16_t)((d->size + d->gso_size - 1) / d->gso_size);
	received(w, port, CANAL_RX_UNDERLAY, &p);
	worker_drop(w, &p, reason);
}

static void take_datagram(struct worker *w, struct port *port, struct taken *t, const struct datagram *d)
{
	uint32_t vtep = tables_find_vtep(w->tables, d->addr, port->encap), in = CANAL_TARGET_VTEP | vtep;
	uint32_t step = d->gso_size;

	if (unlikely(vtep == w->tables->n_vteps)) {
		refuse_datagram(w, port, d, CANAL_DROP_UNKNOWN_PEER);
		return;
	}
	if (unlikely(d->truncated || d->size > CANAL_PACKET_MAX)) {
		refuse_datagram(w, port, d, CANAL_DROP_TOO_LONG);
		return;
	}
	if (step == 0 || step >= d->size || one_superpacket(w, port, d)) {
		take_payload(w, port, t, d, in, d->data, d->size, step < d->size ? step : 0);
		return;
	}
	for (uint32_t at = 0; at < d->size; at += step)
		take_payload(w, port, t, d, in, d->data + at, d->size - at < step ? d->size - at : step, 0);
}

void pipeline_from_underlay(struct worker *w, struct port *port, uint32_t n)
{
	struct taken t = { .n = 0 };

	w->coalescer.udp = !(w->dp->config.flags & CANAL_DP_NO_USO_WRITE);
	for (uint32_t i = 0; i < n; i++)
		take_datagram(w, port, &t, &w->datagrams[i]);
	taken_flush(w, &t);
	finish(w);
}
