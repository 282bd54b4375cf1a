/*
 * judge.c - may this packet pass, and where to.
 *
 * Place:      after the flow lookup, before TTL, MTU and emission. Called by pipeline.c for every packet.
 * Structure:
 *
 *     flow known, same snapshot, same way in ──────────────────────────────────► as remembered
 *     flow unknown, or remembered under another snapshot ──► martian? ─► source check ─► route ─► policy ─► remember
 *     ICMP error ──► the flow that it quotes ─► may this sender say so? ─► source check ─► route
 *     later fragment ──► what the first one got
 *
 * Invariants: an entry's targets are of the snapshot whose generation it carries; both directions are judged again after a new one.
 *             A peer never sends through us to another peer. A pod sends only from its own addresses.
 * Threads:    worker.
 * Source:     RFC 1812 5.3 (martians), RFC 4291, RFC 4861 (neighbour discovery); the table that routes also checks the source (as WireGuard's allowed-ips).
 */
#include "judge.h"

#include <string.h>

#include "fib.h"
#include "notes.h"
#include "parse.h"
#include "policy.h"

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
static enum canal_drop check_and_route(struct worker *w, struct packet *p, uint32_t *source, uint32_t *destination)
{
	enum canal_drop drop;

	if (unlikely(martian(&p->flow)))
		return CANAL_DROP_MARTIAN;
	*source = fib_lookup(w->tables->fib, p->flow.src, p->flow.family);
	*destination = fib_lookup(w->tables->fib, p->flow.dst, p->flow.family);
	drop = source_check(w, p, *source);
	return drop ? drop : route(p, *destination, &p->out);
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

/* ---- policy -------------------------------------------------------------------------------------------------------------- */

/* The pod of ours that has an address, by the target that the FIB gives for it. */
static uint32_t pod_of(const struct worker *w, uint32_t target)
{
	uint32_t port = target & CANAL_TARGET_INDEX;

	if (!target_is(target, CANAL_TARGET_PORT) || w->dp->ports[port].kind != CANAL_PORT_POD)
		return CANAL_NO_POD;
	return port;
}

/* Ask policy about a flow whose first packet went from `source` to `destination`, as the FIB calls them. */
static void ask_policy(const struct worker *w, const struct canal_flow *first, uint32_t source, uint32_t destination, bool by_host,
                       struct canal_judgement *found)
{
	struct canal_way way = { pod_of(w, source), pod_of(w, destination), by_host };

	if (w->tables->policy)
		policy_judge(w->tables->policy, first, &way, found);
	else
		*found = (struct canal_judgement){ .verdict = w->tables->node.policy_default };
}

static void count_hits(struct worker *w, const struct canal_judgement *found)
{
	for (int end = 0; end < 2; end++) {
		worker_hit(w, found->rule[end]);
		if (found->log[end])
			worker_hit(w, found->log[end]);
	}
}

/* What becomes of a packet that policy was asked about; `first` is the first packet of its flow. */
static enum canal_drop take_judgement(struct worker *w, const struct packet *p, const struct canal_flow *first, const struct canal_judgement *found)
{
	if (unlikely(found->verdict == CANAL_DENY || found->log[0] || found->log[1]))
		notes_add(w->notes, p, first, found, w->now_ms);
	if (likely(found->verdict == CANAL_ALLOW))
		return CANAL_DROP_NONE;
	count_hits(w, found);
	return found->reject ? CANAL_DROP_REJECTED : CANAL_DROP_POLICY;
}

/* The first packet of a flow, made of a later one. */
static struct canal_flow first_of(const struct packet *p, const struct ct_entry *e, bool reply)
{
	struct canal_flow first = p->flow;

	first.icmp_type = e->icmp_type;
	first.icmp_code = e->icmp_code;
	if (reply) {
		memcpy(first.src, p->flow.dst, 16);
		memcpy(first.dst, p->flow.src, 16);
		first.sport_be = p->flow.dport_be;
		first.dport_be = p->flow.sport_be;
	}
	return first;
}

static void remember(struct worker *w, struct ct_entry *e, const struct canal_judgement *found)
{
	e->generation = (uint32_t)w->tables->generation;
	e->verdict = CANAL_ALLOW;
	e->rule[CANAL_EGRESS] = found->rule[CANAL_EGRESS];
	e->rule[CANAL_INGRESS] = found->rule[CANAL_INGRESS];
}

/* A flow that was judged under another snapshot. */
static enum canal_drop judge_again(struct worker *w, struct packet *p, uint32_t source, uint32_t destination, bool reply)
{
	struct ct_entry *e = p->ct;
	struct canal_flow first = first_of(p, e, reply);
	struct canal_judgement found;
	enum canal_drop drop;

	ask_policy(w, &first, reply ? destination : source, reply ? source : destination, e->from_host, &found);
	drop = take_judgement(w, p, &first, &found);
	if (unlikely(drop)) {
		ct_remove(w->ct, e);
		p->ct = NULL;
		w->inserted = true;
		return w->dp->config.flags & CANAL_DP_RESET_CUT ? CANAL_DROP_REJECTED : drop;
	}
	remember(w, e, &found);
	e->in[!reply] = e->out[!reply] = CANAL_TARGET_NONE;
	return CANAL_DROP_NONE;
}

/* The way of a packet of a known flow, and whether it may still take it. */
static enum canal_drop reroute_known(struct worker *w, struct packet *p, uint32_t source, uint32_t destination)
{
	struct ct_entry *e = p->ct;
	uint32_t reply = (p->flow.flags & CANAL_FLOW_REPLY) != 0;

	return_through_host(w, p, e, reply);
	if (e->generation != (uint32_t)w->tables->generation) {
		enum canal_drop drop = judge_again(w, p, source, destination, reply);

		if (drop)
			return drop;
	}
	e->in[reply] = p->in;
	e->out[reply] = p->out;
	return CANAL_DROP_NONE;
}

static enum canal_drop judge_known(struct worker *w, struct packet *p, uint32_t source, uint32_t destination)
{
	enum canal_drop drop = reroute_known(w, p, source, destination);

	return drop ? drop : ct_update(w->ct, p->ct, p, w->now_ms);
}

static enum canal_drop judge_new(struct worker *w, struct packet *p, uint32_t source, uint32_t destination)
{
	struct canal_judgement found;
	enum canal_drop drop;
	struct ct_entry *e;

	ask_policy(w, &p->flow, source, destination, from_host(w, p), &found);
	drop = take_judgement(w, p, &p->flow, &found);
	if (drop)
		return drop;
	e = ct_insert(w->ct, p, owner_of(w, p), w->now_ms, &drop);
	w->inserted = true;
	if (!e)
		return drop;
	count_hits(w, &found);
	remember(w, e, &found);
	e->icmp_type = p->flow.icmp_type;
	e->icmp_code = p->flow.icmp_code;
	e->from_host = from_host(w, p);
	e->in[0] = p->in;
	e->out[0] = p->out;
	p->ct = e;
	return ct_update(w->ct, e, p, w->now_ms);
}

static enum canal_drop judge_unknown(struct worker *w, struct packet *p)
{
	uint32_t source, destination;
	enum canal_drop drop;

	worker_count(w, CANAL_POLICY_MISSES, p->vnet.segments);
	drop = check_and_route(w, p, &source, &destination);
	if (drop)
		return drop;
	return p->ct ? judge_known(w, p, source, destination) : judge_new(w, p, source, destination);
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

static enum canal_drop judge_icmp_error(struct worker *w, struct packet *p)
{
	struct canal_flow quoted;
	bool quoted_is_reply = false;
	uint32_t source, destination;
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
	if (drop)
		return drop;
	drop = check_and_route(w, p, &source, &destination);
	if (drop)
		return drop;
	return_through_host(w, p, e, !quoted_is_reply);
	return CANAL_DROP_NONE;
}

/* A later fragment under another snapshot than its first one: route and policy are asked about the flow that the first one belongs to. */
static enum canal_drop judge_fragment_again(struct worker *w, struct packet *p, const struct frag_verdict *verdict)
{
	struct packet first = *p;
	struct canal_judgement found;
	uint32_t source, destination;
	enum canal_drop drop;

	first.flow.sport_be = verdict->sport_be;
	first.flow.dport_be = verdict->dport_be;
	first.flow.icmp_type = verdict->icmp_type;
	first.flow.icmp_code = verdict->icmp_code;
	first.flow.flags &= (uint8_t)~(CANAL_FLOW_FRAG | CANAL_FLOW_LATER_FRAG | CANAL_FLOW_MORE_FRAGS);
	ct_lookup(w->ct, (struct packet *const[]){ &first }, 1);
	drop = check_and_route(w, &first, &source, &destination);
	if (drop)
		return drop;
	if (first.ct) {
		drop = reroute_known(w, &first, source, destination);
	} else {
		ask_policy(w, &first.flow, source, destination, from_host(w, p), &found);
		drop = take_judgement(w, &first, &first.flow, &found);
	}
	p->out = first.out;
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
		verdict.generation = w->tables->generation;
		verdict.out = p->out;
		frag_remember(w->frags, p, &verdict);
	}
	p->out = verdict.out;
	return CANAL_DROP_NONE;
}

static enum canal_drop judge_flow(struct worker *w, struct packet *p)
{
	const struct ct_entry *e = p->ct;
	uint32_t reply = (p->flow.flags & CANAL_FLOW_REPLY) != 0;

	if (likely(e && e->generation == (uint32_t)w->tables->generation && e->in[reply] == p->in)) {
		p->out = e->out[reply];
		return ct_update(w->ct, p->ct, p, w->now_ms);
	}
	return judge_unknown(w, p);
}

enum canal_drop judge_packet(struct worker *w, struct packet *p)
{
	enum canal_drop drop;

	if (likely(!(p->flow.flags & (CANAL_FLOW_FRAG | CANAL_FLOW_ICMP_ERROR)))) {
		if (unlikely(w->inserted || p->flow.tcp_flags & TCP_SYN))   /* a SYN may open anew what an RST closed just now */
			ct_lookup(w->ct, (struct packet *const[]){ p }, 1);
		return judge_flow(w, p);
	}
	if (p->flow.flags & CANAL_FLOW_LATER_FRAG)
		return judge_later_fragment(w, p);
	if (p->flow.flags & CANAL_FLOW_FRAG) {
		struct frag_verdict unused;

		drop = frag_check(w->frags, p, w->now_ms, &unused);
		if (drop)
			return drop;
	}
	if (p->flow.flags & CANAL_FLOW_ICMP_ERROR)
		drop = judge_icmp_error(w, p);
	else {
		ct_lookup(w->ct, (struct packet *const[]){ p }, 1);
		drop = judge_flow(w, p);
	}
	if (!drop && (p->flow.flags & CANAL_FLOW_FRAG))
		frag_remember(w->frags, p, &(struct frag_verdict){ .out = p->out, .generation = w->tables->generation,
		                                                   .sport_be = p->flow.sport_be, .dport_be = p->flow.dport_be,
		                                                   .icmp_type = p->flow.icmp_type, .icmp_code = p->flow.icmp_code });
	return drop;
}
