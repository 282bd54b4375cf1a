/*
 * classify.c - five fields -> the first rule that holds, for rules of any shape.
 *
 * Place:      canal.h's canal_classify(), and classify_first() for programs of policies; built by classify_build.c, immutable, so that it
 *             can be a part of the snapshot.
 * Structure:  a vector has a bit for each rule, in their order: those that a packet's value of one field does not rule out.
 *
 *     src, dst    FIB ──────────────────────────► vector
 *     sport       run of values ─┐
 *     dport       run of values ─┼─► cell ──────► vector     all combinations of ports and protocol worked out beforehand; when
 *     proto       run of values ─┘                           they are too many, the vector of each instead
 *
 *     vector      | summary: a bit for each word that is not 0 | chunks: where the words of 16 bits each are |
 *     block       64 words of rules: one word of the summary, four chunks
 *
 *             The summaries' common bits name the words to look at; the first of these that has a common bit ends the search, for rules
 *             stand in order of priority. A group of packets goes through each step together, so that their lines load together.
 * Invariants: read only. A chunk holds the words that are not 0, one after the other, and may belong to many vectors.
 * Threads:    any.
 * Limits:     classify_build.c's. Ports are compared as parsed: a packet without ports has 0.
 * Source:     Lakshman and Stiliadis 1998 (bit vectors), Baboescu and Varghese 2001 (summaries), Gupta and McKeown 1999 (cells).
 *             Sapphire Rapids, one shared core, no cache, M lookups/s in batches of 64 | one by one, ClassBench sets of 10,000 rules, best
 *             of several:
 *                                                          acl1        fw1          ipc1         vectors of fw1
 *                 this                                     31 | 21     13.5 | 7.5   15.8 | 12.0  1.3 MB
 *                 five vectors, no cells                   30 | 21      9.3 | 5.3   12.7 | 10.0  6.3 MB (chunks not shared)
 *                 cells, chunks not shared                 33 | 23     11.7 | 6.5   14.8 | 11.8  6.5 MB
 *                 words prefetched too                     26 | 19     13.1 | 7.2   13.9 | 11.7  1.3 MB (100,000 rules: + 40 %)
 *                 rules sorted by prefix, least row wins   19           8.1         14.6         5.5 MB
 *             Sorting leaves fewer words to look at in ipc1 (3.3 instead of 9.6), more in acl1 (3.4, 1.1), and no end at the first hit.
 *             100,000 generated rules with a tenth of wildcards: built in 0.4 s, 124 MB, 3.3 M/s; without shared chunks more than 1 GiB.
 */
#include "classify.h"

#include <endian.h>
#include <string.h>

enum { GROUP = 64, ADDR_BYTES = 16, FIELDS_MAX = 5, FIELDS_MERGED = 3 };

/* Clones with popcnt and tzcnt, chosen at load time. (TSan is not up yet when they are chosen.) */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

__attribute__((always_inline))
static inline uint32_t entry_of(const struct classify_runs *runs, uint32_t value)
{
	uint32_t word = value / CLASSIFY_WORD;
	uint64_t up_to = runs->starts[word] << (63 - value % CLASSIFY_WORD);

	return runs->entries[(uint16_t)(runs->before[word] + __builtin_popcountll(up_to))];
}

/* from: the first row that counts; a constant 0 costs nothing. */
__attribute__((always_inline))
static inline uint32_t first_row(const struct classify_core *c, const uint64_t *const v[FIELDS_MAX], int n_fields, uint32_t from)
{
	uint32_t n = c->n_blocks, from_word = from / CLASSIFY_WORD;

	for (uint32_t block = from_word / CLASSIFY_WORD; block < n; block++) {
		uint64_t live = v[0][block];

		for (int i = 1; i < n_fields; i++)
			live &= v[i][block];
		if (block == from_word / CLASSIFY_WORD)
			live &= ~0ull << from_word % CLASSIFY_WORD;
		for (; live; live &= live - 1) {
			uint32_t bit = (uint32_t)__builtin_ctzll(live);
			uint64_t hits = *classify_word(c->words, v[0], n, block, bit);

			for (int i = 1; i < n_fields; i++)
				hits &= *classify_word(c->words, v[i], n, block, bit);
			if (block * CLASSIFY_WORD + bit == from_word)
				hits &= ~0ull << from % CLASSIFY_WORD;
			if (hits)
				return (block * CLASSIFY_WORD + bit) * CLASSIFY_WORD + (uint32_t)__builtin_ctzll(hits);
		}
	}
	return c->n_rules;
}

/* Vectors of ports and protocol of n flows: one each when all combinations have been worked out, else three. */
__attribute__((always_inline))
static inline void find_ports(const struct classify_core *c, const struct canal_flow *flows, size_t n, uint32_t vectors[FIELDS_MAX][GROUP])
{
	for (size_t i = 0; i < n; i++) {
		uint32_t sport = entry_of(&c->runs[CLASSIFY_SPORT], be16toh(flows[i].sport_be));
		uint32_t dport = entry_of(&c->runs[CLASSIFY_DPORT], be16toh(flows[i].dport_be));
		uint32_t proto = entry_of(&c->runs[CLASSIFY_PROTO], flows[i].proto);

		vectors[2][i] = c->cells ? c->cells[sport + dport + proto] : sport;
		vectors[3][i] = dport;
		vectors[4][i] = proto;
		__builtin_prefetch(c->words + vectors[2][i]);
	}
}

__attribute__((always_inline))
static inline void search(const struct classify_core *c, uint32_t vectors[FIELDS_MAX][GROUP], int n_fields, size_t n, uint32_t *rows)
{
	for (size_t i = 0; i < n; i++) {
		const uint64_t *v[FIELDS_MAX];

		for (int f = 0; f < n_fields; f++)
			v[f] = c->words + vectors[f][i];
		rows[i] = first_row(c, v, n_fields, 0);
	}
}

CLONES static void classify_group(const struct canal_classifier *classifier, const struct canal_flow *flows, size_t n, uint32_t *rows)
{
	const struct classify_core *c = &classifier->core;
	uint8_t src[GROUP][ADDR_BYTES], dst[GROUP][ADDR_BYTES], families[GROUP];
	uint32_t vectors[FIELDS_MAX][GROUP];

	if (n == 0)
		return;
	for (size_t i = 0; i < n; i++) {
		memcpy(src[i], flows[i].src, ADDR_BYTES);
		memcpy(dst[i], flows[i].dst, ADDR_BYTES);
		families[i] = flows[i].family;
	}
	fib_lookup_batch(classifier->src, src[0], families, n, vectors[0]);
	fib_lookup_batch(classifier->dst, dst[0], families, n, vectors[1]);
	for (size_t i = 0; i < n; i++) {
		__builtin_prefetch(c->words + vectors[0][i]);
		__builtin_prefetch(c->words + vectors[1][i]);
	}
	find_ports(c, flows, n, vectors);
	if (likely(c->cells))
		search(c, vectors, FIELDS_MERGED, n, rows);
	else
		search(c, vectors, FIELDS_MAX, n, rows);
}

CLONES uint32_t classify_first(const struct classify_core *c, uint32_t src, uint32_t dst, const uint16_t values[CLASSIFY_RUNS], uint32_t from)
{
	uint32_t entries[CLASSIFY_RUNS];

	for (int field = 0; field < CLASSIFY_RUNS; field++)
		entries[field] = entry_of(&c->runs[field], values[field]);
	if (likely(c->cells)) {
		uint32_t cell = c->cells[entries[CLASSIFY_SPORT] + entries[CLASSIFY_DPORT] + entries[CLASSIFY_PROTO]];

		return first_row(c, (const uint64_t *const[FIELDS_MAX]){ c->words + src, c->words + dst, c->words + cell }, FIELDS_MERGED, from);
	}
	return first_row(c, (const uint64_t *const[FIELDS_MAX]){ c->words + src, c->words + dst, c->words + entries[CLASSIFY_SPORT],
	                 c->words + entries[CLASSIFY_DPORT], c->words + entries[CLASSIFY_PROTO] }, FIELDS_MAX, from);
}

int canal_classify(const struct canal_classifier *c, const struct canal_flow *flows, size_t n, uint32_t *rows)
{
	for (size_t first = 0; first < n; first += GROUP)
		classify_group(c, flows + first, (n - first < GROUP) ? n - first : GROUP, rows + first);
	return CANAL_OK;
}
