/*
 * classify_build.c - ranges of ports and protocols -> the vectors and tables that classify.c searches.
 *
 * Place:      under classify_rules.c, which adds addresses by prefix, and policy_program.c, which adds them by class; never the worker's.
 * Structure:  one set of rules goes through each field's values in order; a rule enters where its range begins and leaves where it ends,
 *             and what the set holds between two changes is a vector.
 *
 *                 sport, dport, proto: runs ─► cells, or none ─► the caller's addresses
 *
 * Invariants: the set is empty between two fields. Vector 0 is the empty one, which is what a FIB says of an address without prefix.
 * Limits:     CELLS_MAX cells with CELLS_WORDS_MAX words, else no cells; classify_set.c's bound of memory, which
 *             also bounds time: a step costs the rules that enter or leave, and the head of the vector.
 */
#include "classify_build.h"

#include <stdlib.h>
#include <string.h>

enum { CELLS_MAX = 1 << 16, CELLS_WORDS_MAX = 1 << 22 };

/* A rule enters or leaves at a value. */
struct change {
	uint32_t at;
	uint32_t rule;
	bool enters;
};

int classify_fault(struct classify_builder *b, int code, size_t row, size_t field)
{
	*b->fault = (struct canal_fault){ .code = code, .table = (int32_t)b->table, .row = (uint32_t)row, .field = (uint32_t)field };
	return code;
}

int classify_take(struct classify_builder *b, size_t row, size_t field, uint32_t *vector)
{
	int rc = classify_set_take(&b->set, vector);

	return rc ? classify_fault(b, rc, row, field) : CANAL_OK;
}

/* ---- ports and protocols ------------------------------------------------------------------------------------------------- */

static int compare_changes(const void *a, const void *b)
{
	const struct change *x = a, *y = b;

	return (x->at > y->at) - (x->at < y->at);
}

static void list_changes(const struct classify_builder *b, int field, struct change *changes)
{
	for (size_t i = 0; i < b->n; i++) {
		changes[2 * i] = (struct change){ .at = b->ranges[i].lo[field], .rule = (uint32_t)i, .enters = true };
		changes[2 * i + 1] = (struct change){ .at = b->ranges[i].hi[field] + 1u, .rule = (uint32_t)i };
	}
	qsort(changes, 2 * b->n, sizeof(*changes), compare_changes);
}

/* A vector for each run of values between two changes; what leaves after the last value is taken out of the set. */
static int walk_changes(struct classify_builder *b, const struct change *changes, size_t n, size_t field, struct classify_runs *runs)
{
	size_t i = 0;

	for (uint32_t at = 0; at < CLASSIFY_VALUES; at = i < n ? changes[i].at : CLASSIFY_VALUES) {
		int rc;

		for (; i < n && changes[i].at == at; i++)
			(changes[i].enters ? classify_set_add : classify_set_remove)(&b->set, changes[i].rule);
		rc = classify_take(b, i > 0 ? changes[i - 1].rule : 0, field, &runs->entries[runs->n_entries++]);
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

static int build_runs(struct classify_builder *b, int field, struct classify_runs *runs)
{
	size_t most = 2 * b->n < CLASSIFY_VALUES ? 2 * b->n + 1 : CLASSIFY_VALUES;
	struct change *changes = malloc((2 * b->n + 1) * sizeof(*changes));
	int rc = classify_fault(b, CANAL_ENOMEM, 0, b->members[field]);

	runs->entries = malloc(most * sizeof(*runs->entries));
	if (changes && runs->entries) {
		list_changes(b, field, changes);
		rc = walk_changes(b, changes, 2 * b->n, b->members[field], runs);
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
static int fill_cells(struct classify_builder *b, uint32_t *const names[CLASSIFY_RUNS], const size_t n[CLASSIFY_RUNS], uint32_t *cells, size_t *room)
{
	size_t start = b->set.used;

	for (size_t i = 0; i < n[0] * n[1] * n[2]; i++) {
		uint32_t vectors[CLASSIFY_RUNS] = { names[0][i / n[2] / n[1]], names[1][i / n[2] % n[1]], names[2][i % n[2]] };
		int rc;

		classify_set_intersect(&b->set, vectors);
		rc = classify_take(b, 0, b->members[CLASSIFY_SPORT], &cells[i]);
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
static void drop_cells(struct classify_builder *b, struct classify_core *c, size_t used)
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

static int merge_named(struct classify_builder *b, struct classify_core *c, uint32_t *const names[CLASSIFY_RUNS])
{
	size_t n[CLASSIFY_RUNS], used = b->set.used, room = CELLS_WORDS_MAX;
	int rc;

	for (int field = 0; field < CLASSIFY_RUNS; field++)
		n[field] = name_vectors(&c->runs[field], names[field]);
	if (n[0] * n[1] * n[2] > CELLS_MAX)
		return CANAL_OK;
	c->cells = calloc(n[0] * n[1] * n[2], sizeof(*c->cells));
	rc = c->cells ? fill_cells(b, names, n, c->cells, &room) : classify_fault(b, CANAL_ENOMEM, 0, 0);
	if (rc || room == 0) {
		drop_cells(b, c, used);
		return rc;
	}
	number_entries(&c->runs[0], names[0], n[0], n[1] * n[2]);
	number_entries(&c->runs[1], names[1], n[1], n[2]);
	number_entries(&c->runs[2], names[2], n[2], 1);
	return CANAL_OK;
}

static int merge_runs(struct classify_builder *b, struct classify_core *c)
{
	uint32_t *names[CLASSIFY_RUNS];
	bool all = true;
	int rc;

	for (int field = 0; field < CLASSIFY_RUNS; field++) {
		names[field] = malloc(c->runs[field].n_entries * sizeof(*names[field]));
		all = all && names[field];
	}
	rc = all ? merge_named(b, c, names) : classify_fault(b, CANAL_ENOMEM, 0, 0);
	for (int field = 0; field < CLASSIFY_RUNS; field++)
		free(names[field]);
	return rc;
}

/* ---- the core ------------------------------------------------------------------------------------------------------------ */

int classify_core_begin(struct classify_builder *b, struct classify_core *core)
{
	uint32_t empty;
	int rc = classify_set_init(&b->set, b->n) ? CANAL_OK : classify_fault(b, CANAL_ENOMEM, 0, 0);

	core->n_rules = (uint32_t)b->n;
	core->n_blocks = b->set.n_blocks;
	if (!rc)
		rc = classify_take(b, 0, 0, &empty);
	for (int field = 0; field < CLASSIFY_RUNS && !rc; field++)
		rc = build_runs(b, field, &core->runs[field]);
	return rc ? rc : merge_runs(b, core);
}

int classify_core_end(struct classify_builder *b, struct classify_core *core, int rc)
{
	core->words = rc ? NULL : realloc(b->set.words, b->set.used * sizeof(*b->set.words));
	if (core->words)
		b->set.words = NULL;
	else if (!rc)
		rc = classify_fault(b, CANAL_ENOMEM, 0, 0);
	classify_set_free(&b->set);
	return rc;
}

void classify_core_free(struct classify_core *core)
{
	for (int field = 0; field < CLASSIFY_RUNS; field++)
		free(core->runs[field].entries);
	free(core->cells);
	free(core->words);
}
