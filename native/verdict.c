/*
 * verdict.c - what policy says of a packet's flow, and what is remembered of it.
 *
 * Place:      between judge.c, which knows the packet's way, and policy.c, which knows the rules. Asked once a flow and snapshot; for a flow
 *             that is denied, for every packet.
 * Structure:
 *
 *     flow ─► which pods of ours are its ends? ─► policy_judge ─► hits, notes ─► conntrack entry: verdict, rules, generation
 *
 * Invariants: policy is asked about the first packet of a flow, also when a later one, or a reply, is at hand.
 *             A known flow that a new snapshot denies stays in the table as denied: were it forgotten, the other end's next packet would look
 *             like the first one of a flow that it may begin. Nothing refreshes it, and it makes room before others do.
 *             A TCP connection that began before this data path did: nobody knows which end began it, so what is allowed either way goes on
 *             for as long as PICK_UP_MS after the start, and no longer.
 * Threads:    worker.
 */
#include "verdict.h"

#include <string.h>

#include "notes.h"
#include "policy.h"

enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };
enum { PICK_UP_MS = 300 * 1000 };     /* longer than a sender waits before it tries again: 120 s */

/* The pod of ours that has an address, by the target that the FIB gives for it. */
static uint32_t pod_of(const struct worker *w, uint32_t target)
{
	uint32_t port = target & CANAL_TARGET_INDEX;

	if (!target_is(target, CANAL_TARGET_PORT) || w->dp->ports[port].kind != CANAL_PORT_POD)
		return CANAL_NO_POD;
	return port;
}

static void ask(const struct worker *w, const struct canal_flow *first, const struct ends *ends, bool from_host, struct canal_judgement *found)
{
	struct canal_way way = { pod_of(w, ends->source), pod_of(w, ends->destination), from_host };

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
static enum canal_drop take(struct worker *w, const struct packet *p, const struct canal_flow *first, const struct canal_judgement *found)
{
	if (unlikely(found->verdict == CANAL_DENY || found->log[0] || found->log[1]))
		notes_add(w->notes, p, first, found, w->now_ms);
	if (likely(found->verdict == CANAL_ALLOW))
		return CANAL_DROP_NONE;
	count_hits(w, found);
	return found->reject ? CANAL_DROP_REJECTED : CANAL_DROP_POLICY;
}

static struct canal_flow turned_flow(const struct canal_flow *flow)
{
	struct canal_flow other = *flow;

	memcpy(other.src, flow->dst, 16);
	memcpy(other.dst, flow->src, 16);
	other.sport_be = flow->dport_be;
	other.dport_be = flow->sport_be;
	return other;
}

static struct ends turned_ends(const struct ends *ends)
{
	return (struct ends){ ends->destination, ends->source };
}

static bool is_host(const struct worker *w, uint32_t target)
{
	return target == atomic_load_explicit(&w->dp->host_target, memory_order_relaxed);
}

/* A segment from the middle of a connection, so soon after the start that the connection may be older than we are. */
static bool may_be_older(const struct worker *w, const struct packet *p)
{
	return p->flow.proto == IPPROTO_TCP && (p->flow.tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK &&
	       w->now_ms - w->born_ms < PICK_UP_MS;
}

enum canal_drop verdict_new(struct worker *w, const struct packet *p, const struct ends *ends, struct canal_judgement *found, bool *turned)
{
	*turned = false;
	ask(w, &p->flow, ends, is_host(w, p->in), found);
	if (unlikely(found->verdict == CANAL_DENY && may_be_older(w, p))) {
		struct canal_flow first = turned_flow(&p->flow);
		struct ends other = turned_ends(ends);
		struct canal_judgement answer;

		ask(w, &first, &other, is_host(w, p->out), &answer);
		if (answer.verdict == CANAL_ALLOW) {
			*turned = true;
			*found = answer;
			return take(w, p, &first, found);
		}
	}
	return take(w, p, &p->flow, found);
}

static void remember(const struct worker *w, struct ct_entry *e, const struct canal_judgement *found)
{
	e->generation = (uint32_t)w->tables->generation;
	e->verdict = (uint8_t)found->verdict;
	memcpy(e->rule, found->rule, sizeof(e->rule));
}

void verdict_begin(struct worker *w, struct ct_entry *e, const struct canal_judgement *found)
{
	count_hits(w, found);
	remember(w, e, found);
}

bool verdict_holds(const struct worker *w, const struct ct_entry *e)
{
	return e->generation == (uint32_t)w->tables->generation && e->verdict == CANAL_ALLOW;
}

enum canal_drop verdict_again(struct worker *w, const struct packet *p, const struct canal_flow *flow, struct ct_entry *e, bool reply,
                              const struct ends *ends)
{
	struct canal_flow first = reply ? turned_flow(flow) : *flow;
	struct ends of_first = reply ? turned_ends(ends) : *ends;
	struct canal_judgement found;
	enum canal_drop drop;

	first.icmp_type = e->icmp_type;
	first.icmp_code = e->icmp_code;
	ask(w, &first, &of_first, e->from_host, &found);
	drop = take(w, p, &first, &found);
	remember(w, e, &found);
	memset(e->in, 0, sizeof(e->in));         /* CANAL_TARGET_NONE: each direction is routed anew */
	memset(e->out, 0, sizeof(e->out));
	return unlikely(drop) && w->dp->config.flags & CANAL_DP_RESET_CUT ? CANAL_DROP_REJECTED : drop;
}
