/*
 * fuzz_classify.c - any rules and flows through the classifier, beside a search of one rule after the other.
 *
 * Structure:  input[0] = rules, then RULE_SIZE bytes a rule, then FLOW_SIZE bytes a flow:
 *
 *             rule   | shape | repeat | src | dst | plens | sport | dport | span |
 *             flow   | shape | src | dst | sport | dport |
 *
 *             A rule may be said again many times, so that few bytes make vectors of several blocks.
 * Invariants: a set of rules is refused exactly when one of them is out of its domain, and then the first such row is named; else both
 *             searches find the same row, in a batch and one by one.
 */
/* sources: classify.c classify_build.c classify_rules.c classify_set.c fib.c */
#include <stdlib.h>

#include "classify.h"

enum { RULE_SIZE = 8, FLOW_SIZE = 5, FLOWS_MAX = 70, ROWS_MAX = 5000, REPEAT = 40 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	struct canal_rule rules[ROWS_MAX];
	struct canal_flow flows[FLOWS_MAX];
	size_t n_rules, n_flows;
};

static void require(bool condition)
{
	if (!condition)
		abort();
}

/* A byte as an address whose first and last bits it says, cut to plen. */
static void address(uint8_t *bytes, uint8_t family, uint8_t value, uint32_t plen)
{
	uint32_t bits = plen + (family == 4 ? 96 : 0);

	memset(bytes, 0, 16);
	if (family == 4)
		memset(bytes + 10, 0xff, 2);
	bytes[family == 4 ? 12 : 0] = value & 0xf0;
	bytes[15] = value & 0x0f;
	for (uint32_t bit = bits; bit < 128; bit++)
		bytes[bit / 8] &= (uint8_t)~(0x80 >> bit % 8);
}

static uint8_t family_of(uint8_t shape)
{
	static const uint8_t families[4] = { 4, 6, 4, 0 };

	return families[shape & 3];
}

static struct canal_rule rule_of(const uint8_t *s)
{
	struct canal_rule rule = { .family = family_of(s[0]), .flags = s[0] >> 2 & 1, .proto = s[0] >> 3 & 3, .sport_hi = 65535, .dport_hi = 65535 };
	uint32_t unit = rule.family == 4 ? 32 / 8 : 128 / 8;

	if (rule.family) {
		rule.src_plen = (uint8_t)((s[4] & 15) * unit / (s[0] & 0x80 ? 1 : 2));
		rule.dst_plen = (uint8_t)((s[4] >> 4) * unit / (s[0] & 0x80 ? 1 : 2));
		address(rule.src, rule.family, s[2], rule.src_plen);
		address(rule.dst, rule.family, s[3], rule.dst_plen);
	}
	if (s[0] & 0x20)
		rule.sport_lo = s[5], rule.sport_hi = (uint16_t)(s[5] + (s[7] & 15) - (s[7] == 0xff));
	if (s[0] & 0x40)
		rule.dport_lo = (uint16_t)(s[6] << 8), rule.dport_hi = (uint16_t)((s[6] << 8) + (s[7] >> 4 << 8));
	return rule;
}

static struct canal_flow flow_of(const uint8_t *s)
{
	struct canal_flow flow = { .family = s[0] & 1 ? 6 : 4, .proto = s[0] >> 3 & 3 };

	address(flow.src, flow.family, s[1], 128);
	address(flow.dst, flow.family, s[2], 128);
	flow.sport_be = (uint16_t)(s[3] << 8);
	flow.dport_be = (uint16_t)(s[4] | (s[0] & 0x40 ? 0x0100 : 0));
	return flow;
}

static bool starts_with(const uint8_t *addr, const uint8_t *prefix, uint32_t bits)
{
	uint32_t whole = bits / 8;

	return memcmp(addr, prefix, whole) == 0 && (bits % 8 == 0 || (addr[whole] ^ prefix[whole]) >> (8 - bits % 8) == 0);
}

static uint32_t host_order(uint16_t port_be)
{
	return load_be16((const uint8_t *)&port_be);
}

static bool holds(const struct canal_rule *r, const struct canal_flow *f)
{
	uint32_t mapped = r->family == 4 ? 96 : 0, sport = host_order(f->sport_be), dport = host_order(f->dport_be);

	if (sport < r->sport_lo || sport > r->sport_hi || dport < r->dport_lo || dport > r->dport_hi)
		return false;
	if (!(r->flags & CANAL_RULE_ANY_PROTO) && r->proto != f->proto)
		return false;
	return r->family == 0 || (r->family == f->family && starts_with(f->src, r->src, r->src_plen + mapped)
	                          && starts_with(f->dst, r->dst, r->dst_plen + mapped));
}

static uint32_t first_that_holds(const struct input *in, const struct canal_flow *flow)
{
	uint32_t row = 0;

	while (row < in->n_rules && !holds(&in->rules[row], flow))
		row++;
	return row;
}

/* The first rule out of its domain, or the number of rules. Host bits are never set here. */
static uint32_t first_wrong(const struct input *in)
{
	uint32_t row = 0;

	for (; row < in->n_rules; row++) {
		const struct canal_rule *r = &in->rules[row];
		uint32_t longest = r->family == 4 ? 32 : r->family == 6 ? 128 : 0;

		if (r->src_plen > longest || r->dst_plen > longest || r->sport_lo > r->sport_hi || r->dport_lo > r->dport_hi)
			break;
	}
	return row;
}

static void read_input(struct input *in, const uint8_t *data, size_t size)
{
	size_t n = data[0];

	for (data++, size--; n > 0 && size >= RULE_SIZE; n--, data += RULE_SIZE, size -= RULE_SIZE)
		for (size_t again = 1 + (data[1] > 250 ? (size_t)REPEAT * data[2] : 0); again > 0 && in->n_rules < ROWS_MAX; again--)
			in->rules[in->n_rules++] = rule_of(data);
	for (; size >= FLOW_SIZE && in->n_flows < FLOWS_MAX; data += FLOW_SIZE, size -= FLOW_SIZE)
		in->flows[in->n_flows++] = flow_of(data);
}

static void compare(const struct input *in, const struct canal_classifier *c)
{
	uint32_t rows[FLOWS_MAX], row;

	require(canal_classify(c, in->flows, in->n_flows, rows) == CANAL_OK);
	for (size_t i = 0; i < in->n_flows; i++) {
		require(rows[i] == first_that_holds(in, &in->flows[i]));
		require(canal_classify(c, &in->flows[i], 1, &row) == CANAL_OK && row == rows[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct canal_classifier *c;
	struct canal_fault fault;
	struct input *in;
	int rc;

	if (size == 0)
		return 0;
	in = calloc(1, sizeof(*in));
	require(in != NULL);
	read_input(in, data, size);
	rc = canal_classifier_build(in->rules, in->n_rules, &c, &fault);
	if (first_wrong(in) == in->n_rules) {
		require(rc == CANAL_OK);
		compare(in, c);
		canal_classifier_free(c);
	} else {
		require(rc == CANAL_EINVAL && !c && fault.table == CANAL_TABLE_RULE && fault.row == first_wrong(in));
	}
	free(in);
	return 0;
}
