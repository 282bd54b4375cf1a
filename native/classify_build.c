/*
 * classify_build.c - rules -> the vectors and tables that classify.c searches.
 *
 * Place:      canal.h's canal_classifier_build(); never the worker's.
 * Structure:  one set of rules goes through each field's values in order; a rule enters where its prefix or range begins and leaves where
 *             it ends, and what the set holds between two changes is a vector. Prefixes are nested, so the open ones are a stack.
 *
 *                 check ─► sport, dport, proto: runs ─► cells, or none ─► src, dst: FIB
 *
 * Invariants: the set is empty between two fields. Vector 0 is the empty one, which is what a FIB says of an address without prefix.
 * Limits:     CANAL_RULES_MAX rules; CELLS_MAX cells with CELLS_WORDS_MAX words, else no cells; classify_set.c's bound of memory, which
 *             also bounds time: a step costs the rules that enter or leave, and the head of the vector.
 */
#include "classify_set.h"

#include <stdlib.h>
#include <string.h>

enum { ADDR_BYTES = 16, V4_BITS = 96, DEPTH_MAX = 129, PROTO_LAST = 255 };
enum { CELLS_MAX = 1 << 16, CELLS_WORDS_MAX = 1 << 22 };

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

/* A rule enters or leaves at a value. */
struct change {
	uint32_t at;
	uint32_t rule;
	bool enters;
};

struct builder {
	const struct canal_rule *rules;
	size_t n;
	struct canal_fault *fault;
	struct classify_set set;
};

static int fault_at(struct builder *b, int code, size_t row, size_t field)
{
	*b->fault = (struct canal_fault){ .code = code, .table = CANAL_TABLE_RULE, .row = (uint32_t)row, .field = (uint32_t)field };
	return code;
}

/* The vector of what the set holds now. row, field: whom to blame when there is no room. */
static int take_vector(struct builder *b, size_t row, size_t field, uint32_t *vector)
{
	int rc = classify_set_take(&b->set, vector);

	return rc ? fault_at(b, rc, row, field) : CANAL_OK;
}

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
static size_t list_prefixes(const struct builder *b, bool dst, struct prefix *prefixes)
{
	size_t n = 0;

	for (size_t i = 0; i < b->n; i++) {
		const struct canal_rule *rule = &b->rules[i];
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
static int walk_prefixes(struct builder *b, const struct prefix *prefixes, size_t n, size_t field, struct canal_fib_entry *entries, size_t *n_entries)
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
		rc = take_vector(b, p->rule, field, &entry->target);
	}
	close_groups(&b->set, prefixes, open, depth, NULL);
	return rc;
}

static int build_addresses(struct builder *b, bool dst, struct fib **out)
{
	struct prefix *prefixes = malloc((2 * b->n + 1) * sizeof(*prefixes));
	struct canal_fib_entry *entries = malloc((2 * b->n + 1) * sizeof(*entries));
	size_t field = dst ? offsetof(struct canal_rule, dst) : offsetof(struct canal_rule, src), n_entries = 0;
	int rc = fault_at(b, CANAL_ENOMEM, 0, field);

	if (prefixes && entries)
		rc = walk_prefixes(b, prefixes, list_prefixes(b, dst, prefixes), field, entries, &n_entries);
	if (!rc && fib_build(entries, n_entries, out, b->fault))
		rc = fault_at(b, b->fault->code, 0, field);
	free(entries);
	free(prefixes);
	return rc;
}

/* ---- ports and protocols ------------------------------------------------------------------------------------------------- */

static int compare_changes(const void *a, const void *b)
{
	const struct change *x = a, *y = b;

	return (x->at > y->at) - (x->at < y->at);
}

/* The values that a rule takes in a field. */
static void range_of(const struct canal_rule *rule, int field, uint32_t *lo, uint32_t *hi)
{
	bool any = rule->flags & CANAL_RULE_ANY_PROTO;

	*lo = field == CLASSIFY_SPORT ? rule->sport_lo : field == CLASSIFY_DPORT ? rule->dport_lo : any ? 0 : rule->proto;
	*hi = field == CLASSIFY_SPORT ? rule->sport_hi : field == CLASSIFY_DPORT ? rule->dport_hi : any ? PROTO_LAST : rule->proto;
}

static void list_changes(const struct builder *b, int field, struct change *changes)
{
	for (size_t i = 0; i < b->n; i++) {
		uint32_t lo, hi;

		range_of(&b->rules[i], field, &lo, &hi);
		changes[2 * i] = (struct change){ .at = lo, .rule = (uint32_t)i, .enters = true };
		changes[2 * i + 1] = (struct change){ .at = hi + 1, .rule = (uint32_t)i };
	}
	qsort(changes, 2 * b->n, sizeof(*changes), compare_changes);
}

/* A vector for each run of values between two changes; what leaves after the last value is taken out of the set. */
static int walk_changes(struct builder *b, const struct change *changes, size_t n, size_t field, struct classify_runs *runs)
{
	size_t i = 0;

	for (uint32_t at = 0; at < CLASSIFY_VALUES; at = i < n ? changes[i].at : CLASSIFY_VALUES) {
		int rc;

		for (; i < n && changes[i].at == at; i++)
			(changes[i].enters ? classify_set_add : classify_set_remove)(&b->set, changes[i].rule);
		rc = take_vector(b, i > 0 ? changes[i - 1].rule : 0, field, &runs->entries[runs->n_entries++]);
		if (rc)
			return rc;
		runs->starts[at / CLASSIFY_WORD] |= 1ull << at % CLASSIFY_WORD;
	}
	for (; i < n; i++)
		classify_set_remove(&b->set, changes[i].rule);
	return CANAL_OK;
}

static void count_runs(struct classify_runs *runs)
{
	uint32_t n = 0;

	for (size_t i = 0; i < CLASSIFY_VALUES / CLASSIFY_WORD; i++) {
		runs->before[i] = (uint16_t)(n - 1);
		n += (uint32_t)__builtin_popcountll(runs->starts[i]);
	}
}

static int build_runs(struct builder *b, int field, struct classify_runs *runs)
{
	static const size_t members[CLASSIFY_RUNS] = { offsetof(struct canal_rule, sport_lo), offsetof(struct canal_rule, dport_lo),
	                                               offsetof(struct canal_rule, proto) };
	size_t most = 2 * b->n < CLASSIFY_VALUES ? 2 * b->n + 1 : CLASSIFY_VALUES;
	struct change *changes = malloc((2 * b->n + 1) * sizeof(*changes));
	int rc = fault_at(b, CANAL_ENOMEM, 0, members[field]);

	runs->entries = malloc(most * sizeof(*runs->entries));
	if (changes && runs->entries) {
		list_changes(b, field, changes);
		rc = walk_changes(b, changes, 2 * b->n, members[field], runs);
		count_runs(runs);
	}
	free(changes);
	return rc;
}

/* ---- combinations of ports and protocol ---------------------------------------------------------------------------------- */

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* The different vectors of a field, sorted, into names[]; returns how many. */
static size_t name_vectors(const struct classify_runs *runs, uint32_t *names)
{
	size_t n = 0;

	memcpy(names, runs->entries, runs->n_entries * sizeof(*names));
	qsort(names, runs->n_entries, sizeof(*names), compare_u32);
	for (size_t i = 0; i < runs->n_entries; i++)
		if (n == 0 || names[i] != names[n - 1])
			names[n++] = names[i];
	return n;
}

/* cells[]: the vector of each combination. *room: words that they may take; 0 afterwards when that was not enough. */
static int fill_cells(struct builder *b, uint32_t *const names[CLASSIFY_RUNS], const size_t n[CLASSIFY_RUNS], uint32_t *cells, size_t *room)
{
	size_t start = b->set.used;

	for (size_t i = 0; i < n[0] * n[1] * n[2]; i++) {
		uint32_t vectors[CLASSIFY_RUNS] = { names[0][i / n[2] / n[1]], names[1][i / n[2] % n[1]], names[2][i % n[2]] };
		int rc;

		classify_set_intersect(&b->set, vectors);
		rc = take_vector(b, 0, offsetof(struct canal_rule, sport_lo), &cells[i]);
		classify_set_clear(&b->set);
		if (rc)
			return rc;
		if (b->set.used - start > *room) {
			*room = 0;
			break;
		}
	}
	return CANAL_OK;
}

/* Too many combinations: the three vectors of each packet are searched by themselves. */
static void drop_cells(struct builder *b, struct canal_classifier *c, size_t used)
{
	free(c->cells);
	c->cells = NULL;
	classify_set_forget(&b->set, used);
}

/* Entries become parts of a cell's number. */
static void number_entries(struct classify_runs *runs, const uint32_t *names, size_t n, size_t stride)
{
	for (size_t i = 0; i < runs->n_entries; i++) {
		const uint32_t *name = bsearch(&runs->entries[i], names, n, sizeof(*names), compare_u32);

		runs->entries[i] = (uint32_t)((size_t)(name - names) * stride);
	}
}

static int merge_named(struct builder *b, struct canal_classifier *c, uint32_t *const names[CLASSIFY_RUNS])
{
	size_t n[CLASSIFY_RUNS], used = b->set.used, room = CELLS_WORDS_MAX;
	int rc;

	for (int field = 0; field < CLASSIFY_RUNS; field++)
		n[field] = name_vectors(&c->runs[field], names[field]);
	if (n[0] * n[1] * n[2] > CELLS_MAX)
		return CANAL_OK;
	c->cells = calloc(n[0] * n[1] * n[2], sizeof(*c->cells));
	rc = c->cells ? fill_cells(b, names, n, c->cells, &room) : fault_at(b, CANAL_ENOMEM, 0, 0);
	if (rc || room == 0) {
		drop_cells(b, c, used);
		return rc;
	}
	number_entries(&c->runs[0], names[0], n[0], n[1] * n[2]);
	number_entries(&c->runs[1], names[1], n[1], n[2]);
	number_entries(&c->runs[2], names[2], n[2], 1);
	return CANAL_OK;
}

static int merge_runs(struct builder *b, struct canal_classifier *c)
{
	uint32_t *names[CLASSIFY_RUNS];
	bool all = true;
	int rc;

	for (int field = 0; field < CLASSIFY_RUNS; field++) {
		names[field] = malloc(c->runs[field].n_entries * sizeof(*names[field]));
		all = all && names[field];
	}
	rc = all ? merge_named(b, c, names) : fault_at(b, CANAL_ENOMEM, 0, 0);
	for (int field = 0; field < CLASSIFY_RUNS; field++)
		free(names[field]);
	return rc;
}

/* ---- all fields ---------------------------------------------------------------------------------------------------------- */

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

static int check_rules(struct builder *b)
{
	size_t field;

	if (b->n > CANAL_RULES_MAX)
		return fault_at(b, CANAL_ERANGE, CANAL_RULES_MAX, 0);
	for (size_t i = 0; i < b->n; i++)
		if (check_rule(&b->rules[i], &field))
			return fault_at(b, CANAL_EINVAL, i, field);
	return CANAL_OK;
}

static int build_fields(struct builder *b, struct canal_classifier *c)
{
	uint32_t empty;
	int rc = take_vector(b, 0, 0, &empty);

	for (int field = 0; field < CLASSIFY_RUNS && !rc; field++)
		rc = build_runs(b, field, &c->runs[field]);
	if (!rc)
		rc = merge_runs(b, c);
	if (!rc)
		rc = build_addresses(b, false, &c->src);
	if (!rc)
		rc = build_addresses(b, true, &c->dst);
	return rc;
}

static int build(struct builder *b, struct canal_classifier *c)
{
	int rc = classify_set_init(&b->set, b->n) ? CANAL_OK : fault_at(b, CANAL_ENOMEM, 0, 0);

	c->n_rules = (uint32_t)b->n;
	c->n_blocks = b->set.n_blocks;
	if (!rc)
		rc = build_fields(b, c);
	c->words = rc ? NULL : realloc(b->set.words, b->set.used * sizeof(*b->set.words));
	if (c->words)
		b->set.words = NULL;
	else if (!rc)
		rc = fault_at(b, CANAL_ENOMEM, 0, 0);
	classify_set_free(&b->set);
	return rc;
}

int canal_classifier_build(const struct canal_rule *rules, size_t n, struct canal_classifier **out, struct canal_fault *fault)
{
	struct builder b = { .rules = rules, .n = n, .fault = fault };
	struct canal_classifier *c;
	int rc = check_rules(&b);

	*out = NULL;
	if (rc)
		return rc;
	c = calloc(1, sizeof(*c));
	rc = c ? build(&b, c) : fault_at(&b, CANAL_ENOMEM, 0, 0);
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
	for (int field = 0; field < CLASSIFY_RUNS; field++)
		free(c->runs[field].entries);
	free(c->cells);
	fib_free(c->src);
	fib_free(c->dst);
	free(c->words);
	free(c);
}
