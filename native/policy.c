/*
 * policy.c - compiled rules -> verdict.
 *
 * Place:      once per flow, after the source check and the route, before the flow is remembered; again after every new snapshot.
 *             Called by judge.c.
 * Structure:  no rules are loaded yet: the node's default verdict holds for every flow.
 * Threads:    worker.
 */
#include "policy.h"

struct policy_verdict policy_match(const struct canal_tables *tables, const struct canal_flow *original, uint32_t source, uint32_t destination)
{
	(void)original;
	(void)source;
	(void)destination;
	return (struct policy_verdict){ .verdict = (enum canal_verdict)tables->node.policy_default, .rule = 0 };
}
