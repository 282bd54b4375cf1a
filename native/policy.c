/*
 * policy.c - compiled rules -> verdict.
 *
 * Place:      once per flow, after the source check and the route, before the flow is remembered; again after every new snapshot.
 *             Called by judge.c; built by policy_build.c.
 * Structure:
 *
 *     source, destination ─► FIBs ─► classes ─┬─► source is a pod of ours:      its program for egress  ─┐
 *                                            └─► destination is a pod of ours: its program for ingress ─┴─► both must allow
 *
 *             A program is a classifier whose rows are rules in the order in which policies are asked, over all their tiers. The first row
 *             that holds decides; Pass goes on where the next tier begins, Log with the next row.
 * Invariants: a program without a row that holds denies; so does a pod without a program. Where a flow's other end lives, its node asks
 *             for the other direction.
 * Threads:    any; read only.
 */
#include "policy.h"

#include <endian.h>
#include <netinet/in.h>
#include <string.h>

/* What a program's rows compare, in the order of enum classify's fields. */
static void numbers_of(const struct canal_flow *flow, uint16_t values[CLASSIFY_RUNS])
{
	bool icmp = flow->proto == IPPROTO_ICMP || flow->proto == IPPROTO_ICMPV6;

	values[CLASSIFY_SPORT] = icmp ? 0 : be16toh(flow->sport_be);
	values[CLASSIFY_DPORT] = (uint16_t)(icmp ? flow->icmp_type << 8 | flow->icmp_code : be16toh(flow->dport_be));
	values[CLASSIFY_PROTO] = flow->proto;
}

static uint32_t class_of(const struct canal_classes *classes, const uint8_t addr[16], uint8_t family)
{
	uint32_t found = fib_lookup(classes->addresses->fib, addr, family);

	if (!found && classes->base)
		found = fib_lookup(classes->base->fib, addr, family);
	return (found ? found : fib_lookup(classes->prefixes, addr, family)) - 1;
}

/* Run one end's program; returns whether it allows. */
static bool run(const struct canal_program *program, uint32_t src, uint32_t dst, const uint16_t values[CLASSIFY_RUNS], enum canal_end end,
                struct canal_judgement *found)
{
	const struct policy_rows *rows = program ? program->shared : NULL;
	uint32_t at = 0;

	if (unlikely(!program || src >= program->n_classes || dst >= program->n_classes))
		return false;
	while ((at = classify_first(&rows->core, program->vectors[0][src], program->vectors[1][dst], values, at)) < rows->core.n_rules) {
		const struct canal_row *row = &rows->rows[at];

		if (row->action == CANAL_ACTION_PASS) {
			at = row->next;
		} else if (row->action == CANAL_ACTION_LOG) {
			found->log[end] = row->rule;
			at++;
		} else {
			found->rule[end] = row->rule;
			found->reject = row->action == CANAL_ACTION_REJECT;
			return row->action == CANAL_ACTION_ALLOW;
		}
	}
	return false;
}

static bool is_node(const struct canal_classes *classes, uint32_t class)
{
	return class < classes->n_classes && classes->flags[class] & CANAL_CLASS_NODE;
}

/* Both programs of a pod of ours; NULL for anyone else. */
static const struct canal_program *const *programs_of(const struct canal_policy *policy, uint32_t port)
{
	static const struct canal_program *const none[2];

	if (port == CANAL_NO_POD)
		return NULL;
	return port < policy->n_ports ? (const struct canal_program *const *)policy->of_port[port] : none;
}

void policy_judge(const struct canal_policy *policy, const struct canal_flow *flow, const struct canal_way *way, struct canal_judgement *found)
{
	uint32_t src = class_of(policy->classes, flow->src, flow->family), dst = class_of(policy->classes, flow->dst, flow->family);
	const struct canal_program *const *programs;
	uint16_t values[CLASSIFY_RUNS];

	memset(found, 0, sizeof(*found));
	numbers_of(flow, values);
	if ((programs = programs_of(policy, way->source_pod)) && !run(programs[CANAL_EGRESS], src, dst, values, CANAL_EGRESS, found))
		return;
	found->end = CANAL_INGRESS;
	if (programs && is_node(policy->classes, dst) && policy->to_host == CANAL_DENY)
		return;
	programs = programs_of(policy, way->destination_pod);
	if (programs && !(way->from_host && is_node(policy->classes, src)) && !run(programs[CANAL_INGRESS], src, dst, values, CANAL_INGRESS, found))
		return;
	found->verdict = CANAL_ALLOW;
}

int canal_policy_judge(const struct canal_policy *policy, const struct canal_flow *flows, const struct canal_way *ways, size_t n,
                       struct canal_judgement *found)
{
	for (size_t i = 0; i < n; i++)
		policy_judge(policy, &flows[i], &ways[i], &found[i]);
	return CANAL_OK;
}

int canal_classes_find(const struct canal_classes *classes, const uint8_t *addrs, size_t n, uint32_t *found)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	for (size_t i = 0; i < n; i++)
		found[i] = class_of(classes, addrs + i * 16, memcmp(addrs + i * 16, mapped, sizeof(mapped)) == 0 ? 4 : 6);
	return CANAL_OK;
}
