/*
 * classify_rules.c - rules of five fields, checked, with their addresses -> a classifier.
 *
 * Place:      canal.h's canal_classifier_build(); never the worker's.
 * Structure:  check ─► ranges: classify_build.c ─► src, dst: FIB of vectors
 *
 *             Prefixes are nested, so those around an address are a stack: a rule enters the set where its prefix begins and leaves where it
 *             ends, and what the set holds between two changes is a vector.
 * Limits:     CANAL_RULES_MAX rules; classify_build.c's.
 */
#include "classify_build.h"

#include <stdlib.h>
#include <string.h>

enum { ADDR_BYTES = 16, V4_BITS = 96, DEPTH_MAX = 129, PROTO_LAST = 255 };

static const uint8_t v4_mapped[V4_BITS / 8] = { [10] = 0xff, [11] = 0xff };

/* A rule's prefix in one of the two address fields. */
struct prefix {
	uint8_t bytes[ADDR_BYTES];
	uint32_t plen;           /* of 128 bits */
	uint32_t rule;
	uint8_t family;
};

/* Rows of one and the same prefix. */
struct group { size_t first, end; };

/* ---- addresses ----------------------------------------------------------------------------------------------------------- */

static int compare_prefixes(const void *a, const void *b)
{
	const struct prefix *x = a, *y = b;
	int order = (x->family > y->family) - (x->family < y->family);

	if (order == 0)
		order = memcmp(x->bytes, y->bytes, ADDR_BYTES);
	if (order == 0)
		order = (x->plen > y->plen) - (x->plen < y->plen);
	return order ? order : (x->rule > y->rule) - (x->rule < y->rule);
}

static bool contains(const struct prefix *outer, const struct prefix *inner)
{
	uint32_t whole = outer->plen / 8, rest = outer->plen % 8;

	if (outer->family != inner->family || outer->plen > inner->plen || memcmp(outer->bytes, inner->bytes, whole) != 0)
		return false;
	return rest == 0 || (outer->bytes[whole] ^ inner->bytes[whole]) >> (8 - rest) == 0;
}

static bool same_prefix(const struct prefix *x, const struct prefix *y)
{
	return x->family == y->family && x->plen == y->plen && memcmp(x->bytes, y->bytes, ADDR_BYTES) == 0;
}

/* The prefixes of one field, sorted; a rule of any family has one of each. Returns how many. */
static size_t list_prefixes(const struct canal_rule *rules, size_t n_rules, bool dst, struct prefix *prefixes)
{
	size_t n = 0;

	for (size_t i = 0; i < n_rules; i++) {
		const struct canal_rule *rule = &rules[i];
		struct prefix p = { .plen = dst ? rule->dst_plen : rule->src_plen, .rule = (uint32_t)i, .family = rule->family };

		memcpy(p.bytes, dst ? rule->dst : rule->src, ADDR_BYTES);
		if (rule->family == 0) {
			p.family = 6;
			prefixes[n++] = p;
			p.family = 4;
			memcpy(p.bytes, v4_mapped, sizeof(v4_mapped));
		}
		p.plen += p.family == 4 ? V4_BITS : 0;
		prefixes[n++] = p;
	}
	qsort(prefixes, n, sizeof(*prefixes), compare_prefixes);
	return n;
}

/* Close the prefixes that do not hold `next` (all of them when there is none); returns how many stay open. */
static size_t close_groups(struct classify_set *set, const struct prefix *prefixes, const struct group *open, size_t depth, const struct prefix *next)
{
	while (depth > 0 && (!next || !contains(&prefixes[open[depth - 1].first], next))) {
		const struct group *group = &open[--depth];

		for (size_t i = group->first; i < group->end; i++)
			classify_set_remove(set, prefixes[i].rule);
	}
	return depth;
}

/* entries[0..*n_entries): each prefix once, with its vector. Prefixes around come before those that they hold. */
static int walk_prefixes(struct classify_builder *b, const struct prefix *prefixes, size_t n, size_t field, struct canal_fib_entry *entries, size_t *n_entries)
{
	struct group open[DEPTH_MAX];
	size_t depth = 0;
	int rc = CANAL_OK;

	*n_entries = 0;
	for (size_t first = 0, end; first < n && !rc; first = end) {
		const struct prefix *p = &prefixes[first];
		struct canal_fib_entry *entry = &entries[(*n_entries)++];

		depth = close_groups(&b->set, prefixes, open, depth, p);
		for (end = first; end < n && same_prefix(&prefixes[end], p); end++)
			classify_set_add(&b->set, prefixes[end].rule);
		open[depth++] = (struct group){ first, end };
		*entry = (struct canal_fib_entry){ .family = p->family, .plen = (uint8_t)(p->plen - (p->family == 4 ? V4_BITS : 0)) };
		memcpy(entry->prefix, p->bytes, ADDR_BYTES);
		rc = classify_take(b, p->rule, field, &entry->target);
	}
	close_groups(&b->set, prefixes, open, depth, NULL);
	return rc;
}

static int build_addresses(struct classify_builder *b, const struct canal_rule *rules, bool dst, struct fib **out)
{
	struct prefix *prefixes = malloc((2 * b->n + 1) * sizeof(*prefixes));
	struct canal_fib_entry *entries = malloc((2 * b->n + 1) * sizeof(*entries));
	size_t field = dst ? offsetof(struct canal_rule, dst) : offsetof(struct canal_rule, src), n_entries = 0;
	int rc = classify_fault(b, CANAL_ENOMEM, 0, field);

	if (prefixes && entries)
		rc = walk_prefixes(b, prefixes, list_prefixes(rules, b->n, dst, prefixes), field, entries, &n_entries);
	if (!rc && fib_build(entries, n_entries, out, b->fault))
		rc = classify_fault(b, b->fault->code, 0, field);
	free(entries);
	free(prefixes);
	return rc;
}

/* ---- checks -------------------------------------------------------------------------------------------------------------- */

static bool host_bits_zero(const uint8_t *bytes, uint32_t plen)
{
	for (uint32_t byte = plen / 8; byte < ADDR_BYTES; byte++)
		if (bytes[byte] & (byte == plen / 8 ? 0xff >> plen % 8 : 0xff))
			return false;
	return true;
}

static bool prefix_is_valid(const uint8_t *bytes, uint32_t plen, uint8_t family)
{
	return (family != 4 || memcmp(bytes, v4_mapped, sizeof(v4_mapped)) == 0) && host_bits_zero(bytes, plen + (family == 4 ? V4_BITS : 0));
}

/* CANAL_OK, or the offset of the member that is wrong and CANAL_EINVAL. */
static int check_rule(const struct canal_rule *rule, size_t *field)
{
	uint32_t longest = rule->family == 4 ? 32 : rule->family == 6 ? 128 : 0;

#define WRONG_IF(condition, member) do { *field = offsetof(struct canal_rule, member); if (condition) return CANAL_EINVAL; } while (0)
	WRONG_IF(rule->family != 0 && rule->family != 4 && rule->family != 6, family);
	WRONG_IF(rule->src_plen > longest, src_plen);
	WRONG_IF(rule->dst_plen > longest, dst_plen);
	WRONG_IF(!prefix_is_valid(rule->src, rule->src_plen, rule->family), src);
	WRONG_IF(!prefix_is_valid(rule->dst, rule->dst_plen, rule->family), dst);
	WRONG_IF(rule->sport_lo > rule->sport_hi, sport_hi);
	WRONG_IF(rule->dport_lo > rule->dport_hi, dport_hi);
	WRONG_IF(rule->flags & ~(uint32_t)CANAL_RULE_ANY_PROTO, flags);
#undef WRONG_IF
	return CANAL_OK;
}

static int check_rules(struct classify_builder *b, const struct canal_rule *rules)
{
	size_t field;

	if (b->n > CANAL_RULES_MAX)
		return classify_fault(b, CANAL_ERANGE, CANAL_RULES_MAX, 0);
	for (size_t i = 0; i < b->n; i++)
		if (check_rule(&rules[i], &field))
			return classify_fault(b, CANAL_EINVAL, i, field);
	return CANAL_OK;
}

/* ---- all fields ---------------------------------------------------------------------------------------------------------- */

static struct classify_ranges ranges_of(const struct canal_rule *rule)
{
	bool any = rule->flags & CANAL_RULE_ANY_PROTO;

	return (struct classify_ranges){ .lo = { rule->sport_lo, rule->dport_lo, any ? 0 : rule->proto },
	                                 .hi = { rule->sport_hi, rule->dport_hi, any ? PROTO_LAST : rule->proto } };
}

static int build(struct classify_builder *b, const struct canal_rule *rules, struct canal_classifier *c)
{
	int rc = classify_core_begin(b, &c->core);

	if (!rc)
		rc = build_addresses(b, rules, false, &c->src);
	if (!rc)
		rc = build_addresses(b, rules, true, &c->dst);
	return classify_core_end(b, &c->core, rc);
}

int canal_classifier_build(const struct canal_rule *rules, size_t n, struct canal_classifier **out, struct canal_fault *fault)
{
	struct classify_builder b = { .n = n, .fault = fault, .table = CANAL_TABLE_RULE,
	                              .members = { offsetof(struct canal_rule, sport_lo), offsetof(struct canal_rule, dport_lo),
	                                           offsetof(struct canal_rule, proto) } };
	int rc = check_rules(&b, rules);
	struct classify_ranges *ranges;
	struct canal_classifier *c;

	*out = NULL;
	if (rc)
		return rc;
	ranges = malloc((n + 1) * sizeof(*ranges));
	c = calloc(1, sizeof(*c));
	for (size_t i = 0; ranges && i < n; i++)
		ranges[i] = ranges_of(&rules[i]);
	b.ranges = ranges;
	rc = ranges && c ? build(&b, rules, c) : classify_fault(&b, CANAL_ENOMEM, 0, 0);
	free(ranges);
	if (rc)
		canal_classifier_free(c);
	else
		*out = c;
	return rc;
}

void canal_classifier_free(struct canal_classifier *c)
{
	if (!c)
		return;
	classify_core_free(&c->core);
	fib_free(c->src);
	fib_free(c->dst);
	free(c);
}
