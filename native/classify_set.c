/*
 * classify_set.c - a set of rules that changes a little at a time, and the vectors that it was.
 *
 * Place:      under classify_build.c, which leads the set through the values of each field.
 * Structure:
 *
 *     members | word | word | ...        a bit for each rule
 *     head    | summary: a bit for each word that is not 0 | chunks: where its packed words are kept, 4 bytes each |
 *
 *             To take a vector is to keep the chunks that changed and then the head. A hash table finds what is kept already, so that
 *             equal chunks and equal heads are there once: two prefixes share all but the chunks of the rules that only one of them has.
 * Invariants: a chunk is kept without its zero words; one that has none is nowhere (0). Kept words are never written again.
 * Limits:     WORDS_MAX words are kept (1 GiB). That, not the number of rules, is what ends a build of rules that overlap without order.
 */
#include "classify_set.h"

#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 1 << 27, WORDS_FIRST = 1 << 16, SLOTS_FIRST = 1 << 10, BLOCK_RULES = CLASSIFY_WORD * CLASSIFY_WORD };

/* A run of kept words; n = 0: free. */
struct classify_slot { uint32_t at, n; };

bool classify_set_init(struct classify_set *set, size_t n_rules)
{
	size_t blocks = n_rules / BLOCK_RULES + 1;

	set->n_blocks = (uint32_t)blocks;
	set->members = calloc(blocks * CLASSIFY_WORD, sizeof(*set->members));
	set->head = calloc(classify_head_words(set->n_blocks), sizeof(*set->head));
	set->changed = calloc(blocks * CLASSIFY_CHUNKS, sizeof(*set->changed));
	set->is_changed = calloc(blocks * CLASSIFY_CHUNKS, sizeof(*set->is_changed));
	if (!set->members || !set->head || !set->changed || !set->is_changed)
		return false;
	set->chunks = (uint32_t *)(set->head + blocks);
	return true;
}

void classify_set_free(struct classify_set *set)
{
	free(set->members);
	free(set->head);
	free(set->changed);
	free(set->is_changed);
	free(set->slots);
	free(set->words);
}

void classify_set_word(struct classify_set *set, uint32_t index, uint64_t word)
{
	uint64_t bit = 1ull << index % CLASSIFY_WORD, *summary = &set->head[index / CLASSIFY_WORD];
	uint32_t chunk = index / CLASSIFY_CHUNK_WORDS;

	if (set->members[index] == word)
		return;
	set->members[index] = word;
	*summary = word ? *summary | bit : *summary & ~bit;
	if (!set->is_changed[chunk])
		set->changed[set->n_changed++] = chunk;
	set->is_changed[chunk] = true;
}

void classify_set_add(struct classify_set *set, uint32_t rule)
{
	classify_set_word(set, rule / CLASSIFY_WORD, set->members[rule / CLASSIFY_WORD] | 1ull << rule % CLASSIFY_WORD);
}

void classify_set_remove(struct classify_set *set, uint32_t rule)
{
	classify_set_word(set, rule / CLASSIFY_WORD, set->members[rule / CLASSIFY_WORD] & ~(1ull << rule % CLASSIFY_WORD));
}

static size_t hash_of(const uint64_t *words, size_t n)
{
	uint64_t hash = n;

	for (size_t i = 0; i < n; i++) {
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ull;
		hash ^= hash >> 29;
	}
	return (size_t)hash;
}

/* Where these words are kept, or the free slot for them. */
static struct classify_slot *slot_of(const struct classify_set *set, const uint64_t *words, size_t n)
{
	size_t at = hash_of(words, n) & (set->n_slots - 1);

	while (set->slots[at].n && (set->slots[at].n != n || memcmp(set->words + set->slots[at].at, words, n * sizeof(*words)) != 0))
		at = (at + 1) & (set->n_slots - 1);
	return &set->slots[at];
}

static bool grow_slots(struct classify_set *set)
{
	struct classify_slot *old = set->slots;
	size_t n_old = set->n_slots;

	set->n_slots = n_old ? n_old * 2 : SLOTS_FIRST;
	set->slots = calloc(set->n_slots, sizeof(*set->slots));
	for (size_t i = 0; set->slots && i < n_old; i++)
		if (old[i].n)
			*slot_of(set, set->words + old[i].at, old[i].n) = old[i];
	free(old);
	return set->slots;
}

static int grow_words(struct classify_set *set, size_t need)
{
	size_t room = need * 2 < WORDS_FIRST ? WORDS_FIRST : need * 2;
	uint64_t *grown;

	if (need > WORDS_MAX)
		return CANAL_ERANGE;
	grown = realloc(set->words, room * sizeof(*grown));
	if (!grown)
		return CANAL_ENOMEM;
	set->words = grown;
	set->room = room;
	return CANAL_OK;
}

/* Keep n > 0 words, equal ones once. */
static int keep(struct classify_set *set, const uint64_t *words, size_t n, uint32_t *at)
{
	struct classify_slot *slot;
	int rc;

	if (set->n_kept * 2 >= set->n_slots && !grow_slots(set))
		return CANAL_ENOMEM;
	slot = slot_of(set, words, n);
	if (!slot->n) {
		rc = set->used + n > set->room ? grow_words(set, set->used + n) : CANAL_OK;
		if (rc)
			return rc;
		memcpy(set->words + set->used, words, n * sizeof(*words));
		*slot = (struct classify_slot){ (uint32_t)set->used, (uint32_t)n };
		set->used += n;
		set->n_kept++;
	}
	*at = slot->at;
	return CANAL_OK;
}

/* A chunk is kept as its words that are not 0; without any it is nowhere. */
static int keep_chunk(struct classify_set *set, uint32_t chunk)
{
	uint64_t packed[CLASSIFY_CHUNK_WORDS];
	size_t n = 0;

	for (size_t i = 0; i < CLASSIFY_CHUNK_WORDS; i++)
		if (set->members[chunk * CLASSIFY_CHUNK_WORDS + i])
			packed[n++] = set->members[chunk * CLASSIFY_CHUNK_WORDS + i];
	set->chunks[chunk] = 0;
	return n ? keep(set, packed, n, &set->chunks[chunk]) : CANAL_OK;
}

void classify_set_intersect(struct classify_set *set, const uint32_t vectors[3])
{
	uint32_t n = set->n_blocks;

	for (uint32_t block = 0; block < n; block++) {
		uint64_t live = ~0ull;

		for (int i = 0; i < 3; i++)
			live &= set->words[vectors[i] + block];
		for (; live; live &= live - 1) {
			uint64_t hits = ~0ull;

			for (int i = 0; i < 3; i++)
				hits &= *classify_word(set->words, set->words + vectors[i], n, block, (uint32_t)__builtin_ctzll(live));
			if (hits)
				classify_set_word(set, block * CLASSIFY_WORD + (uint32_t)__builtin_ctzll(live), hits);
		}
	}
}

void classify_set_clear(struct classify_set *set)
{
	for (uint32_t block = 0; block < set->n_blocks; block++)
		for (uint64_t left = set->head[block]; left; left &= left - 1)
			classify_set_word(set, block * CLASSIFY_WORD + (uint32_t)__builtin_ctzll(left), 0);
}

int classify_set_take(struct classify_set *set, uint32_t *vector)
{
	while (set->n_changed > 0) {
		uint32_t chunk = set->changed[--set->n_changed];
		int rc = keep_chunk(set, chunk);

		set->is_changed[chunk] = false;
		if (rc)
			return rc;
	}
	return keep(set, set->head, classify_head_words(set->n_blocks), vector);
}

void classify_set_forget(struct classify_set *set, size_t used)
{
	free(set->slots);
	set->slots = NULL;
	set->n_slots = set->n_kept = 0;
	set->used = used;
}
