/* classify.h - five fields -> the first rule that holds; see classify.c. */
#ifndef CANAL_CLASSIFY_H
#define CANAL_CLASSIFY_H
#include <string.h>

#include "fib.h"
#include "packet.h"

enum { CLASSIFY_WORD = 64, CLASSIFY_VALUES = 1 << 16 };
enum { CLASSIFY_CHUNK_WORDS = 16, CLASSIFY_CHUNKS = CLASSIFY_WORD / CLASSIFY_CHUNK_WORDS };   /* of a block */

/* Value of a port or a protocol -> vector, or part of a cell's number: a bit for each value that begins a run, and an entry for each run. */
struct classify_runs {
	uint64_t starts[CLASSIFY_VALUES / CLASSIFY_WORD];
	uint16_t before[CLASSIFY_VALUES / CLASSIFY_WORD];   /* runs in the words before, less one */
	uint32_t *entries;
	uint32_t n_entries;
};

enum { CLASSIFY_SPORT, CLASSIFY_DPORT, CLASSIFY_PROTO, CLASSIFY_RUNS };

/* All but the addresses, which a classifier finds by prefix and a program of policies by class. */
struct classify_core {
	uint32_t n_rules;
	uint32_t n_blocks;               /* words of a summary */
	uint64_t *words;                 /* the vectors: a vector is the index of its first word, the empty one is 0 */
	uint32_t *cells;                 /* vector of each combination of ports and protocol; NULL when they are too many */
	struct classify_runs runs[CLASSIFY_RUNS];
};

struct canal_classifier {
	struct classify_core core;
	struct fib *src, *dst;           /* target = vector */
};

/* The first rule from `from` on (at most n_rules) that is in the vectors src and dst and holds for these values, or n_rules. */
uint32_t classify_first(const struct classify_core *c, uint32_t src, uint32_t dst, const uint16_t values[CLASSIFY_RUNS], uint32_t from);

/* Words of a vector: its summary, then where each of its chunks is. */
static inline uint32_t classify_head_words(uint32_t n_blocks)
{
	return n_blocks + n_blocks * CLASSIFY_CHUNKS / 2;
}

/* Word `bit` of a block, of which the vector's summary says that it is not 0. */
__attribute__((always_inline))
static inline const uint64_t *classify_word(const uint64_t *words, const uint64_t *vector, uint32_t n_blocks, uint32_t block, uint32_t bit)
{
	uint32_t first = bit & ~(CLASSIFY_CHUNK_WORDS - 1u), at;
	uint64_t before = (vector[block] & ((1ull << bit) - 1)) >> first;

	memcpy(&at, (const uint8_t *)(vector + n_blocks) + (block * CLASSIFY_CHUNKS + bit / CLASSIFY_CHUNK_WORDS) * sizeof(at), sizeof(at));
	return words + at + __builtin_popcountll(before);
}
#endif
