/*
 * policy_build.c - classes, programs and endpoints: checked, copied, frozen, counted.
 *
 * Place:      canal.h's way in for what the policies' compiler made; tables.c holds a policy for as long as its snapshot lives.
 * Structure:  a change of one pod makes new classes, a change of one policy a few new programs; all else is shared by count.
 * Invariants: whatever passes needs no check later: a class is below its classes' number, a row's `next` lies beyond it, an endpoint's
 *             port and programs exist. Programs may know fewer classes than there are: what they do not know they deny.
 * Threads:    any: the counts are atomic, all else is written before it is shared.
 * Limits:     CANAL_CLASSES_MAX, CANAL_RULES_MAX rows, CANAL_PORTS_MAX endpoints; classify_set.c's bound of memory.
 */
#include <stdlib.h>
#include <string.h>

#include "classify_build.h"
#include "policy.h"

static int fault_at(struct canal_fault *fault, int code, enum canal_table table, size_t row, size_t field)
{
	*fault = (struct canal_fault){ .code = code, .table = (int32_t)table, .row = (uint32_t)row, .field = (uint32_t)field };
	return code;
}

static void *copy_of(const void *from, size_t n, size_t size)
{
	void *copy = malloc((n + 1) * size);

	if (copy && n)
		memcpy(copy, from, n * size);
	return copy;
}

static void hold(_Atomic uint32_t *references)
{
	atomic_fetch_add_explicit(references, 1, memory_order_relaxed);
}

static bool last(_Atomic uint32_t *references)
{
	return atomic_fetch_sub_explicit(references, 1, memory_order_acq_rel) == 1;
}

/* ---- classes ------------------------------------------------------------------------------------------------------------- */

static int check_entries(const struct canal_fib_entry *entries, size_t n, size_t n_classes, struct canal_fault *fault)
{
	for (size_t i = 0; i < n; i++)
		if (entries[i].target >= n_classes)
			return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_FIB, i, offsetof(struct canal_fib_entry, target));
	return CANAL_OK;
}

static int check_flags(const uint32_t *flags, size_t n_classes, struct canal_fault *fault)
{
	if (n_classes > CANAL_CLASSES_MAX)
		return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_CLASS, CANAL_CLASSES_MAX, 0);
	for (size_t i = 0; i < n_classes; i++)
		if (flags[i] & ~(uint32_t)CANAL_CLASS_NODE)
			return fault_at(fault, CANAL_EINVAL, CANAL_TABLE_CLASS, i, 0);
	return CANAL_OK;
}

/* A FIB whose targets are class + 1. */
static int build_fib(const struct canal_fib_entry *from, size_t n, size_t n_classes, struct fib **out, struct canal_fault *fault)
{
	int rc = check_entries(from, n, n_classes, fault);
	struct canal_fib_entry *entries = rc ? NULL : copy_of(from, n, sizeof(*entries));

	if (rc)
		return rc;
	if (!entries)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_FIB, 0, 0);
	for (size_t i = 0; i < n; i++)
		entries[i].target++;
	rc = fib_build(entries, n, out, fault);
	free(entries);
	return rc;
}

static void release_addresses(struct policy_addresses *addresses)
{
	if (!addresses || !last(&addresses->references))
		return;
	fib_free(addresses->fib);
	free(addresses);
}

static int fill_classes(struct canal_classes *c, const struct canal_fib_entry *addresses, size_t n, const struct canal_fib_entry *prefixes,
                        size_t n_prefixes, const uint32_t *flags, struct canal_fault *fault)
{
	int rc;

	c->addresses = calloc(1, sizeof(*c->addresses));
	c->flags = copy_of(flags, c->n_classes, sizeof(*flags));
	if (!c->addresses || !c->flags)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_CLASS, 0, 0);
	atomic_init(&c->addresses->references, 1);
	rc = build_fib(addresses, n, c->n_classes, &c->addresses->fib, fault);
	return rc ? rc : build_fib(prefixes, n_prefixes, c->n_classes, &c->prefixes, fault);
}

int canal_classes_build(const struct canal_classes *base, const struct canal_fib_entry *addresses, size_t n,
                        const struct canal_fib_entry *prefixes, size_t n_prefixes, const uint32_t *flags, size_t n_classes,
                        struct canal_classes **out, struct canal_fault *fault)
{
	int rc = check_flags(flags, n_classes, fault);
	struct canal_classes *c;

	*out = NULL;
	if (rc)
		return rc;
	if (base && base->n_classes > n_classes)
		return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_CLASS, n_classes, 0);
	c = calloc(1, sizeof(*c));
	if (!c)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_CLASS, 0, 0);
	atomic_init(&c->references, 1);
	c->n_classes = (uint32_t)n_classes;
	if (base) {
		c->base = base->addresses;
		hold(&c->base->references);
	}
	rc = fill_classes(c, addresses, n, prefixes, n_prefixes, flags, fault);
	if (rc)
		canal_classes_release(c);
	else
		*out = c;
	return rc;
}

void canal_classes_release(struct canal_classes *classes)
{
	if (!classes || !last(&classes->references))
		return;
	release_addresses(classes->addresses);
	release_addresses(classes->base);
	fib_free(classes->prefixes);
	free(classes->flags);
	free(classes);
}

/* ---- programs ------------------------------------------------------------------------------------------------------------ */

static int check_row(const struct canal_row *row, size_t at, size_t n, size_t *field)
{
#define WRONG_IF(condition, member) do { *field = offsetof(struct canal_row, member); if (condition) return CANAL_EINVAL; } while (0)
	WRONG_IF(row->sport_lo > row->sport_hi, sport_hi);
	WRONG_IF(row->dport_lo > row->dport_hi, dport_hi);
	WRONG_IF(row->proto_lo > row->proto_hi, proto_hi);
	WRONG_IF(row->action > CANAL_ACTION_LOG, action);
	WRONG_IF(row->action == CANAL_ACTION_PASS && (row->next <= at || row->next > n), next);
#undef WRONG_IF
	return CANAL_OK;
}

static int check_rows(const struct canal_row *rows, size_t n_rows, struct canal_fault *fault)
{
	size_t field;

	if (n_rows > CANAL_RULES_MAX)
		return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_ROW, CANAL_RULES_MAX, 0);
	for (size_t i = 0; i < n_rows; i++)
		if (check_row(&rows[i], i, n_rows, &field))
			return fault_at(fault, CANAL_EINVAL, CANAL_TABLE_ROW, i, field);
	return CANAL_OK;
}

static struct classify_ranges ranges_of(const struct canal_row *row)
{
	return (struct classify_ranges){ .lo = { row->sport_lo, row->dport_lo, row->proto_lo }, .hi = { row->sport_hi, row->dport_hi, row->proto_hi } };
}

/* Keep the vectors that Python made: kept[i] says where the i-th is. Bits beyond the last row are none. */
static int keep_vectors(struct classify_builder *b, const uint64_t *vectors, size_t n_vectors, uint32_t *kept)
{
	size_t n_words = (b->n + CLASSIFY_WORD - 1) / CLASSIFY_WORD;
	uint64_t beyond = b->n % CLASSIFY_WORD ? ~0ull << b->n % CLASSIFY_WORD : 0;
	int rc = CANAL_OK;

	for (size_t i = 0; i < n_vectors && !rc; i++) {
		for (size_t word = 0; word < n_words; word++)
			classify_set_word(&b->set, (uint32_t)word, vectors[i * n_words + word] & (word + 1 == n_words ? ~beyond : ~0ull));
		rc = classify_set_take(&b->set, &kept[i]);
		if (rc)
			fault_at(b->fault, rc, CANAL_TABLE_VECTOR, i, 0);
	}
	return rc;
}

static int fill_rows(struct policy_rows *shared, struct classify_builder *b, const uint64_t *vectors)
{
	int rc = classify_core_begin(b, &shared->core);

	if (!rc)
		rc = keep_vectors(b, vectors, shared->n_vectors, shared->kept);
	return classify_core_end(b, &shared->core, rc);
}

static void release_rows(struct policy_rows *shared)
{
	if (!shared || !last(&shared->references))
		return;
	classify_core_free(&shared->core);
	free(shared->kept);
	free(shared->rows);
	free(shared);
}

static int build_rows(const struct canal_row *rows, size_t n_rows, const uint64_t *vectors, size_t n_vectors, struct policy_rows **out,
                      struct canal_fault *fault)
{
	struct classify_ranges *ranges = malloc((n_rows + 1) * sizeof(*ranges));
	struct classify_builder b = { .ranges = ranges, .n = n_rows, .fault = fault, .table = CANAL_TABLE_ROW,
	                              .members = { offsetof(struct canal_row, sport_lo), offsetof(struct canal_row, dport_lo),
	                                           offsetof(struct canal_row, proto_lo) } };
	struct policy_rows *shared = calloc(1, sizeof(*shared));
	int rc = fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_ROW, 0, 0);

	if (shared) {
		atomic_init(&shared->references, 1);
		shared->n_vectors = (uint32_t)n_vectors;
		shared->rows = copy_of(rows, n_rows, sizeof(*rows));
		shared->kept = malloc((n_vectors + 1) * sizeof(*shared->kept));
	}
	for (size_t i = 0; ranges && i < n_rows; i++)
		ranges[i] = ranges_of(&rows[i]);
	if (ranges && shared && shared->rows && shared->kept)
		rc = fill_rows(shared, &b, vectors);
	free(ranges);
	if (rc)
		release_rows(shared);
	else
		*out = shared;
	return rc;
}

/* A program for other classes; takes its hold of `shared` itself. */
static int build_program(struct policy_rows *shared, const uint32_t *const sides[2], size_t n_classes, struct canal_program **out,
                         struct canal_fault *fault)
{
	struct canal_program *p = calloc(1, sizeof(*p));

	if (!p)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_CLASS, 0, 0);
	atomic_init(&p->references, 1);
	p->n_classes = (uint32_t)n_classes;
	p->shared = shared;
	hold(&shared->references);
	for (int side = 0; side < 2; side++) {
		p->vectors[side] = malloc((n_classes + 1) * sizeof(*sides[side]));
		if (!p->vectors[side]) {
			canal_program_release(p);
			return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_CLASS, 0, 0);
		}
		for (size_t i = 0; i < n_classes; i++)
			p->vectors[side][i] = shared->kept[sides[side][i]];
	}
	*out = p;
	return CANAL_OK;
}

static int check_sides(const uint32_t *const sides[2], size_t n_classes, size_t n_vectors, struct canal_fault *fault)
{
	if (n_classes > CANAL_CLASSES_MAX)
		return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_CLASS, CANAL_CLASSES_MAX, 0);
	for (int side = 0; side < 2; side++)
		for (size_t i = 0; i < n_classes; i++)
			if (sides[side][i] >= n_vectors)
				return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_CLASS, i, 0);
	return CANAL_OK;
}

int canal_program_build(const struct canal_row *rows, size_t n_rows, const uint64_t *vectors, size_t n_vectors,
                        const uint32_t *src, const uint32_t *dst, size_t n_classes, struct canal_program **out, struct canal_fault *fault)
{
	const uint32_t *const sides[2] = { src, dst };
	struct policy_rows *shared = NULL;
	int rc = check_rows(rows, n_rows, fault);

	*out = NULL;
	if (!rc)
		rc = check_sides(sides, n_classes, n_vectors, fault);
	if (!rc)
		rc = build_rows(rows, n_rows, vectors, n_vectors, &shared, fault);
	if (!rc)
		rc = build_program(shared, sides, n_classes, out, fault);
	release_rows(shared);
	return rc;
}

int canal_program_reclass(const struct canal_program *program, const uint32_t *src, const uint32_t *dst, size_t n_classes,
                          struct canal_program **out, struct canal_fault *fault)
{
	const uint32_t *const sides[2] = { src, dst };
	int rc = check_sides(sides, n_classes, program->shared->n_vectors, fault);

	*out = NULL;
	return rc ? rc : build_program(program->shared, sides, n_classes, out, fault);
}

void canal_program_release(struct canal_program *program)
{
	if (!program || !last(&program->references))
		return;
	release_rows(program->shared);
	free(program->vectors[0]);
	free(program->vectors[1]);
	free(program);
}

/* ---- all together -------------------------------------------------------------------------------------------------------- */

static int check_endpoints(const struct canal_endpoint *endpoints, size_t n, size_t n_programs, uint32_t *n_ports, struct canal_fault *fault)
{
	*n_ports = 0;
	for (size_t i = 0; i < n; i++) {
		if (endpoints[i].port >= CANAL_PORTS_MAX)
			return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_ENDPOINT, i, offsetof(struct canal_endpoint, port));
		for (int end = 0; end < 2; end++)
			if (endpoints[i].program[end] >= n_programs && endpoints[i].program[end] != CANAL_PROGRAM_NONE)
				return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_ENDPOINT, i, offsetof(struct canal_endpoint, program));
		if (endpoints[i].port >= *n_ports)
			*n_ports = endpoints[i].port + 1;
	}
	return CANAL_OK;
}

static void hold_parts(struct canal_policy *p, struct canal_classes *classes, struct canal_program *const *programs)
{
	p->classes = classes;
	hold(&classes->references);
	for (uint32_t i = 0; i < p->n_programs; i++) {
		p->programs[i] = programs[i];
		hold(&programs[i]->references);
	}
}

int canal_policy_build(struct canal_classes *classes, struct canal_program *const *programs, size_t n_programs,
                       const struct canal_endpoint *endpoints, size_t n_endpoints, uint32_t to_host,
                       struct canal_policy **out, struct canal_fault *fault)
{
	uint32_t n_ports;
	int rc = check_endpoints(endpoints, n_endpoints, n_programs, &n_ports, fault);
	struct canal_policy *p;

	*out = NULL;
	if (rc)
		return rc;
	p = calloc(1, sizeof(*p));
	if (!p)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_ENDPOINT, 0, 0);
	atomic_init(&p->references, 1);
	p->to_host = to_host;
	p->n_programs = (uint32_t)n_programs;
	p->n_ports = n_ports;
	p->programs = calloc(n_programs + 1, sizeof(*p->programs));
	p->of_port = calloc(n_ports + (size_t)1, sizeof(*p->of_port));
	if (!p->programs || !p->of_port) {
		canal_policy_release(p);
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_ENDPOINT, 0, 0);
	}
	hold_parts(p, classes, programs);
	for (size_t i = 0; i < n_endpoints; i++)
		for (int end = 0; end < 2; end++)
			if (endpoints[i].program[end] != CANAL_PROGRAM_NONE)
				p->of_port[endpoints[i].port][end] = programs[endpoints[i].program[end]];
	*out = p;
	return CANAL_OK;
}

void canal_policy_hold(struct canal_policy *policy)
{
	hold(&policy->references);
}

void canal_policy_release(struct canal_policy *policy)
{
	if (!policy || !last(&policy->references))
		return;
	for (uint32_t i = 0; i < policy->n_programs && policy->programs; i++)
		canal_program_release(policy->programs[i]);
	canal_classes_release(policy->classes);
	free(policy->programs);
	free(policy->of_port);
	free(policy);
}
