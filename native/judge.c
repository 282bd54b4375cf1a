/*
 * judge.c - may this packet pass, and where to.
 *
 * Place:      after the flow lookup, before TTL, MTU and emission. Called by pipeline.c for every packet.
 * Structure:
 *
 *     flow known, same snapshot, same way in ──────────────────────────────────► as remembered
 *     flow unknown, or remembered under another snapshot ──► martian? ─► source check ─► route ─► policy ─► remember
 *     ICMP error ──► the flow that it quotes ─► may this sender say so, and may that flow be? ─► source check ─► route
 *     later fragment ──► what the first one got, or would get under this snapshot
 *
 * Invariants: an entry's targets are of the snapshot whose generation it carries; both directions are judged again after a new one.
 *             A flow that a new snapshot denies stays denied in both directions until its entry expires or a snapshot allows it.
 *             A peer never sends through us to another peer. A pod sends only from its own addresses.
 * Threads:    worker.
 * Source:     RFC 1812 5.3 (martians), RFC 4291, RFC 4861 (neighbour discovery); the table that routes also checks the source (as WireGuard's allowed-ips).
 */
#include "judge.h"

#include <string.h>

#include "fib.h"
#include "parse.h"
#include "verdict.h"

enum { TCP_SYN = 2 };

static bool v4_martian(const uint8_t *a, bool destination)
{
	if (a[0] == 0 || a[0] == 127 || a[0] >= 240)
		return true;
	if (a[0] == 169 && a[1] == 254)
		return true;
	return destination ? (a[0] & 0xf0) == 224 : a[0] >= 224;
}

/* Also ::, ::1 and the v4-mapped ::ffff:0:0/96, which would look like IPv4 in 16 bytes. */
static bool v6_martian(const uint8_t *a)
{
	static const uint8_t zeros[15], mapped[12] = { [10] = 0xff, [11] = 0xff };

	if (a[0] == 0xff || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80))
		return true;
	return (memcmp(a, zeros, 15) == 0 && a[15] <= 1) || memcmp(a, mapped, 12) == 0;
}

/* Messages between neighbours (redirects, router and neighbour discovery) have no business on a routed way: who sends them wants to
 * change somebody's routes. */
static bool neighbour_talk(const struct canal_flow *flow)
{
	if (flow->proto == IPPROTO_ICMP && flow->family == 4)
		return flow->icmp_type == 5 || flow->icmp_type == 9 || flow->icmp_type == 10;
	return flow->proto == IPPROTO_ICMPV6 && flow->family == 6 && flow->icmp_type >= 130 && flow->icmp_type <= 137;
}

static bool martian(const struct canal_flow *flow)
{
	if (neighbour_talk(flow))
		return true;
	if (flow->family == 4)
		return v4_martian(flow->src + 12, false) || v4_martian(flow->dst + 12, true);
	return v6_martian(flow->src) || v6_martian(flow->dst);
}

/* Does the packet's source belong to where it came from? The host port may send anything: the kernel's NAT does. */
static enum canal_drop source_check(const struct worker *w, const struct packet *p, uint32_t source)
{
	const struct canal_vtep *vteps = w->tables->vteps;

	if (target_is(p->in, CANAL_TARGET_VTEP)) {
		uint32_t lessee = source & CANAL_TARGET_INDEX, sender = p->in & CANAL_TARGET_INDEX;

		if (!target_is(source, CANAL_TARGET_VTEP))
			return CANAL_DROP_INNER_SRC;
		if (lessee != sender && memcmp(vteps[lessee].addr, vteps[sender].addr, 16) != 0)
			return CANAL_DROP_INNER_SRC;
		return CANAL_DROP_NONE;
	}
	if (w->dp->ports[p->in & CANAL_TARGET_INDEX].kind == CANAL_PORT_POD && target_plain(source) != p->in)
		return CANAL_DROP_SPOOFED;
	return CANAL_DROP_NONE;
}

/* Where the destination says it goes. */
static enum canal_drop route(const struct packet *p, uint32_t destination, uint32_t *out)
{
	if (target_is(p->in, CANAL_TARGET_VTEP) && !(destination & CANAL_TARGET_LOCAL))
		return CANAL_DROP_NOT_LOCAL;
	if (destination == CANAL_TARGET_NONE || target_is(destination, CANAL_TARGET_REJECT))
		return CANAL_DROP_NO_ROUTE;
	*out = target_plain(destination);
	return *out == p->in ? CANAL_DROP_NO_ROUTE : CANAL_DROP_NONE;
}

/* Source check and route of one packet, without policy and without remembering. */
static enum canal_drop check_and_route(struct worker *w, struct packet *p, struct ends *ends)
{
	enum canal_drop drop;

	if (unlikely(martian(&p->flow)))
		return CANAL_DROP_MARTIAN;
	ends->source = fib_lookup(w->tables->fib, p->flow.src, p->flow.family);
	ends->destination = fib_lookup(w->tables->fib, p->flow.dst, p->flow.family);
	drop = source_check(w, p, ends->source);
	return drop ? drop : route(p, ends->destination, &p->out);
}

static uint32_t host_target(const struct worker *w)
{
	return atomic_load_explicit(&w->dp->host_target, memory_order_relaxed);
}

static bool from_host(const struct worker *w, const struct packet *p)
{
	return p->in == host_target(w);
}

static uint32_t owner_of(struct worker *w, const struct packet *p)
{
	if (target_is(p->in, CANAL_TARGET_PORT) && worker_port(w, p->in)->kind == CANAL_PORT_POD)
		return p->in & CANAL_TARGET_INDEX;
	if (target_is(p->out, CANAL_TARGET_PORT) && worker_port(w, p->out)->kind == CANAL_PORT_POD)
		return p->out & CANAL_TARGET_INDEX;
	return CT_NO_OWNER;
}

/* A packet of a flow whose first packet came in by the host port goes back there, whatever the FIB says of its destination: the
 * kernel's NAT waits for it. */
static void return_through_host(const struct worker *w, struct packet *p, const struct ct_entry *entry, bool reply)
{
	if (reply && entry->from_host && !from_host(w, p) && host_target(w) != CANAL_TARGET_NONE)
		p->out = host_target(w);
}

/* ---- flows --------------------------------------------------------------------------------------------------------------- */

/* A packet of a known flow, or one that stands for it: judge the flow again where that is due, and remember the packet's way. */
static enum canal_drop pass_known(struct worker *w, struct packet *p, const struct ends *ends)
{
	uint32_t reply = (p->flow.flags & CANAL_FLOW_REPLY) != 0;
	struct ct_entry *e = p->ct;

	return_through_host(w, p, e, reply);
	if (!verdict_holds(w, e)) {
		enum canal_drop drop = verdict_again(w, p, &p->flow, e, reply, ends);

		if (drop)
			return drop;
	}
	e->in[reply] = p->in;
	e->out[reply] = p->out;
	return CANAL_DROP_NONE;
}

static enum canal_drop judge_known(struct worker *w, struct packet *p, const struct ends *ends)
{
	enum canal_drop drop = pass_known(w, p, ends);

	return drop ? drop : ct_update(w->ct, p->ct, p, w->now_ms);
}

/* `turned`: p is the answer to a packet that nobody here saw. */
static void begin(struct worker *w, struct packet *p, struct ct_entry *e, bool turned)
{
	uint32_t reply = turned;

	if (unlikely(turned)) {
		e->original ^= 1;
		p->flow.flags |= CANAL_FLOW_REPLY;
		e->in[0] = e->out[0] = CANAL_TARGET_NONE;
	}
	e->from_host = (turned ? p->out : p->in) == host_target(w);
	e->in[reply] = p->in;
	e->out[reply] = p->out;
	p->ct = e;
}

static enum canal_drop judge_new(struct worker *w, struct packet *p, const struct ends *ends)
{
	struct canal_judgement found;
	enum canal_drop drop;
	struct ct_entry *e;
	bool turned;

	drop = verdict_new(w, p, ends, &found, &turned);
	if (drop)
		return drop;
	e = ct_insert(w->ct, p, owner_of(w, p), w->now_ms, &drop);
	w->inserted = true;
	if (!e)
		return drop;
	begin(w, p, e, turned);
	verdict_begin(w, e, &found);
	return ct_update(w->ct, e, p, w->now_ms);
}

static enum canal_drop judge_unknown(struct worker *w, struct packet *p)
{
	struct ends ends;
	enum canal_drop drop;

	worker_count(w, CANAL_POLICY_MISSES, p->vnet.segments);
	drop = check_and_route(w, p, &ends);
	if (drop)
		return drop;
	return p->ct ? judge_known(w, p, &ends) : judge_new(w, p, &ends);
}

/* An error goes to who sent the packet that it quotes, and comes from where that packet went: else a pod could tell another pod's
 * connections that they are broken. The host port may say anything: errors of the outside come that way. */
static enum canal_drop quote_check(const struct worker *w, const struct packet *p, const struct canal_flow *quoted)
{
	if (from_host(w, p))
		return CANAL_DROP_NONE;
	if (memcmp(p->flow.dst, quoted->src, 16) != 0)
		return CANAL_DROP_CT_INVALID;
	return source_check(w, p, fib_lookup(w->tables->fib, quoted->dst, quoted->family));
}

/* An error passes where the flow that it is about may pass, now. */
static enum canal_drop judge_quoted(struct worker *w, const struct packet *p, const struct canal_flow *quoted, struct ct_entry *e, bool reply)
{
	struct ends ends;

	if (likely(verdict_holds(w, e)))
		return CANAL_DROP_NONE;
	ends.source = fib_lookup(w->tables->fib, quoted->src, quoted->family);
	ends.destination = fib_lookup(w->tables->fib, quoted->dst, quoted->family);
	return verdict_again(w, p, quoted, e, reply, &ends);
}

static enum canal_drop judge_icmp_error(struct worker *w, struct packet *p)
{
	struct canal_flow quoted;
	bool quoted_is_reply = false;
	struct ends ends;
	struct ct_entry *e;
	enum canal_drop drop;

	p->ct = NULL;
	if (martian(&p->flow))
		return CANAL_DROP_MARTIAN;
	if (!parse_quoted(p->data, &p->flow, &quoted))
		return CANAL_DROP_BAD_L4;
	e = ct_find_related(w->ct, &quoted, &quoted_is_reply);
	if (!e)
		return CANAL_DROP_CT_INVALID;
	drop = quote_check(w, p, &quoted);
	if (!drop)
		drop = judge_quoted(w, p, &quoted, e, quoted_is_reply);
	if (!drop)
		drop = check_and_route(w, p, &ends);
	if (!drop)
		return_through_host(w, p, e, !quoted_is_reply);
	return drop;
}

/* ---- fragments ----------------------------------------------------------------------------------------------------------- */

static struct frag_verdict verdict_of(const struct worker *w, const struct packet *first)
{
	const struct canal_flow *flow = &first->flow;

	return (struct frag_verdict){ .out = first->out, .generation = w->tables->generation, .sport_be = flow->sport_be, .dport_be = flow->dport_be,
	                              .proto = flow->proto, .icmp_type = flow->icmp_type, .icmp_code = flow->icmp_code };
}

/* A later fragment with what its first one had besides, so that its flow can be found. */
static struct packet with_ports(const struct packet *p, const struct frag_verdict *first)
{
	struct packet whole = *p;

	whole.flow.flags &= (uint8_t)~(CANAL_FLOW_FRAG | CANAL_FLOW_LATER_FRAG | CANAL_FLOW_MORE_FRAGS);
	whole.flow.sport_be = first->sport_be;
	whole.flow.dport_be = first->dport_be;
	whole.flow.proto = first->proto;
	whole.flow.icmp_type = first->icmp_type;
	whole.flow.icmp_code = first->icmp_code;
	return whole;
}

/* The first one passed under another snapshot: what would become of it now? */
static enum canal_drop judge_fragment_again(struct worker *w, const struct packet *p, struct frag_verdict *verdict)
{
	struct packet whole = with_ports(p, verdict);
	struct canal_judgement found;
	struct ends ends;
	bool turned;
	enum canal_drop drop = check_and_route(w, &whole, &ends);

	if (drop)
		return drop;
	ct_lookup(w->ct, (struct packet *const[]){ &whole }, 1);
	drop = whole.ct ? pass_known(w, &whole, &ends) : verdict_new(w, &whole, &ends, &found, &turned);
	*verdict = verdict_of(w, &whole);
	return drop;
}

static enum canal_drop judge_later_fragment(struct worker *w, struct packet *p)
{
	struct frag_verdict verdict;
	enum canal_drop drop = frag_check(w->frags, p, w->now_ms, &verdict);

	if (drop)
		return drop;
	if (verdict.generation != w->tables->generation) {
		drop = judge_fragment_again(w, p, &verdict);
		if (drop)
			return drop;
		frag_remember(w->frags, p, &verdict);
	}
	p->out = verdict.out;
	return CANAL_DROP_NONE;
}

/* ---- all ----------------------------------------------------------------------------------------------------------------- */

static enum canal_drop judge_flow(struct worker *w, struct packet *p)
{
	const struct ct_entry *e = p->ct;
	uint32_t reply = (p->flow.flags & CANAL_FLOW_REPLY) != 0;

	if (likely(e && e->generation == (uint32_t)w->tables->generation && e->in[reply] == p->in)) {   /* a denied one came in nowhere */
		p->out = e->out[reply];
		return ct_update(w->ct, p->ct, p, w->now_ms);
	}
	return judge_unknown(w, p);
}

enum canal_drop judge_packet(struct worker *w, struct packet *p)
{
	struct frag_verdict verdict;
	enum canal_drop drop;

	if (likely(!(p->flow.flags & (CANAL_FLOW_FRAG | CANAL_FLOW_ICMP_ERROR)))) {
		if (unlikely(w->inserted || p->flow.tcp_flags & TCP_SYN))   /* a SYN may open anew what an RST closed just now */
			ct_lookup(w->ct, (struct packet *const[]){ p }, 1);
		return judge_flow(w, p);
	}
	if (p->flow.flags & CANAL_FLOW_LATER_FRAG)
		return judge_later_fragment(w, p);
	if (p->flow.flags & CANAL_FLOW_FRAG) {
		drop = frag_check(w->frags, p, w->now_ms, &verdict);
		if (drop)
			return drop;
	}
	if (p->flow.flags & CANAL_FLOW_ICMP_ERROR) {
		drop = judge_icmp_error(w, p);
	} else {
		ct_lookup(w->ct, (struct packet *const[]){ p }, 1);
		drop = judge_flow(w, p);
	}
	if (!drop && (p->flow.flags & CANAL_FLOW_FRAG)) {
		verdict = verdict_of(w, p);
		frag_remember(w->frags, p, &verdict);
	}
	return drop;
}
