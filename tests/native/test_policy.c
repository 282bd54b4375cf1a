/*
 * test_policy.c - what policies share is counted: whoever lets go last frees it, in whatever order.
 *
 * Structure:  classes, two programs of one set of rows, a policy of them, snapshots that hold it; let go of in every order. ASan sees what is
 *             used after it was freed, and what is never freed.
 */
#include "check.h"
#include "policy.h"
#include "tables.h"

enum { ROWS = 3, CLASSES = 2, HANDLES = 6, ORDERS = 720 };

static const struct canal_row rows[ROWS] = {
	{ .sport_hi = 0xffff, .dport_hi = 0xffff, .proto_hi = 0xff, .action = CANAL_ACTION_LOG, .rule = 1 },
	{ .sport_hi = 0xffff, .dport_lo = 80, .dport_hi = 80, .proto_hi = 0xff, .action = CANAL_ACTION_PASS, .rule = 2, .next = 3 },
	{ .sport_hi = 0xffff, .dport_hi = 0xffff, .proto_hi = 0xff, .action = CANAL_ACTION_ALLOW, .rule = 3 },
};
static const uint64_t vectors[2] = { 7, 0 };
static const uint32_t all[CLASSES] = { 0, 0 }, second_none[CLASSES] = { 0, 1 };
static const uint32_t flags[CLASSES] = { 0, CANAL_CLASS_NODE };
static const struct canal_fib_entry prefixes[CLASSES] = {
	{ .prefix = { [10] = 0xff, 0xff, 10 }, .family = 4, .plen = 8, .target = 0 },
	{ .prefix = { [10] = 0xff, 0xff, 11 }, .family = 4, .plen = 8, .target = 1 },
};
static const struct canal_fib_entry addresses[] = { { .prefix = { [10] = 0xff, 0xff, 10, 0, 0, 2 }, .family = 4, .plen = 32, .target = 0 } };
static const struct canal_endpoint endpoints[] = { { .port = 3, .program = { 0, 1 } }, { .port = 9, .program = { CANAL_PROGRAM_NONE, 0 } } };
static const struct canal_flow flow = { .src = { [10] = 0xff, 0xff, 10, 0, 0, 1 }, .dst = { [10] = 0xff, 0xff, 10, 0, 0, 2 }, .family = 4,
                                        .proto = 6, .dport_be = 0x5100 };

/* Everything that somebody holds. */
struct held {
	struct canal_classes *classes;
	struct canal_program *programs[2];
	struct canal_policy *policy;
	struct canal_tables *snapshots[2];
};

static void check_verdicts(const struct canal_policy *policy)
{
	const struct canal_way ways[] = { { 3, CANAL_NO_POD, 0 }, { CANAL_NO_POD, 9, 0 }, { 9, CANAL_NO_POD, 0 }, { 4, CANAL_NO_POD, 0 } };
	const uint8_t expected[] = { CANAL_ALLOW, CANAL_ALLOW, CANAL_DENY, CANAL_DENY };
	const struct canal_flow flows[] = { flow, flow, flow, flow };
	struct canal_judgement found[4];

	CHECK_EQ(canal_policy_judge(policy, flows, ways, 4, found), CANAL_OK);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(found[i].verdict, expected[i]);
	CHECK_EQ(found[0].rule[CANAL_EGRESS], 3);
	CHECK_EQ(found[0].log[CANAL_EGRESS], 1);
}

static struct held make(void)
{
	const struct canal_node node = { .vni = 1 };
	struct canal_classes *base;
	struct canal_fault fault;
	struct held h;

	CHECK_EQ(canal_classes_build(NULL, addresses, 1, prefixes, CLASSES, flags, CLASSES, &base, &fault), CANAL_OK);
	CHECK_EQ(canal_classes_build(base, NULL, 0, prefixes, CLASSES, flags, CLASSES, &h.classes, &fault), CANAL_OK);
	canal_classes_release(base);
	CHECK_EQ(canal_program_build(rows, ROWS, vectors, 2, all, all, CLASSES, &h.programs[0], &fault), CANAL_OK);
	CHECK_EQ(canal_program_reclass(h.programs[0], all, second_none, CLASSES, &h.programs[1], &fault), CANAL_OK);
	CHECK_EQ(canal_policy_build(h.classes, h.programs, 2, endpoints, 2, CANAL_ALLOW, &h.policy, &fault), CANAL_OK);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(canal_tables_build(&node, NULL, 0, NULL, 0, 1, &h.snapshots[i], &fault), CANAL_OK);
		CHECK_EQ(canal_tables_set_policy(h.snapshots[i], h.policy), CANAL_OK);
	}
	return h;
}

static void let_go(struct held *h, int which)
{
	switch (which) {
	case 0:
		canal_classes_release(h->classes);
		break;
	case 1:
	case 2:
		canal_program_release(h->programs[which - 1]);
		break;
	case 3:
		canal_policy_release(h->policy);
		h->policy = NULL;
		break;
	default:
		canal_tables_free(h->snapshots[which - 4]);
		h->snapshots[which - 4] = NULL;
	}
}

/* Somebody who still holds the policy may still ask it. */
static void ask_who_is_left(const struct held *h)
{
	if (h->policy)
		check_verdicts(h->policy);
	for (int i = 0; i < 2; i++)
		if (h->snapshots[i])
			check_verdicts(h->snapshots[i]->policy);
}

/* The n-th order of HANDLES things. */
static void order(int n, int out[HANDLES])
{
	int left[HANDLES] = { 0, 1, 2, 3, 4, 5 };

	for (int i = 0; i < HANDLES; i++) {
		int at = n % (HANDLES - i);

		n /= HANDLES - i;
		out[i] = left[at];
		memmove(left + at, left + at + 1, (size_t)(HANDLES - i - 1 - at) * sizeof(*left));
	}
}

static void test_every_order(void)
{
	for (int n = 0; n < ORDERS; n++) {
		struct held h = make();
		int which[HANDLES];

		order(n, which);
		for (int i = 0; i < HANDLES; i++) {
			let_go(&h, which[i]);
			ask_who_is_left(&h);
		}
	}
}

static void test_a_snapshot_takes_another_policy(void)
{
	struct held h = make();

	CHECK_EQ(canal_tables_set_policy(h.snapshots[0], h.policy), CANAL_OK);
	check_verdicts(h.snapshots[0]->policy);
	CHECK_EQ(canal_tables_set_policy(h.snapshots[0], NULL), CANAL_OK);
	CHECK(!h.snapshots[0]->policy);
	for (int i = 0; i < HANDLES; i++)
		let_go(&h, i);
}

static void test_nothing_is_released_quietly(void)
{
	canal_classes_release(NULL);
	canal_program_release(NULL);
	canal_policy_release(NULL);
}

/* What is refused leaves nothing behind, also when much of it was made. */
static void test_refused_programs(void)
{
	struct canal_row bad[ROWS];
	struct canal_program *out;
	struct canal_fault fault;
	const uint32_t beyond[CLASSES] = { 0, 2 };

	memcpy(bad, rows, sizeof(bad));
	bad[2].dport_lo = 9;
	bad[2].dport_hi = 8;
	CHECK_EQ(canal_program_build(bad, ROWS, vectors, 2, all, all, CLASSES, &out, &fault), CANAL_EINVAL);
	CHECK(!out);
	CHECK_EQ(canal_program_build(rows, ROWS, vectors, 2, all, beyond, CLASSES, &out, &fault), CANAL_ERANGE);
	CHECK(!out);
	CHECK_EQ(fault.row, 1);
	CHECK_EQ(canal_program_build(NULL, 0, NULL, 0, NULL, NULL, 0, &out, &fault), CANAL_OK);
	canal_program_release(out);
}

int main(void)
{
	test_every_order();
	test_a_snapshot_takes_another_policy();
	test_nothing_is_released_quietly();
	test_refused_programs();
	return 0;
}
