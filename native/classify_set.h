/* classify_set.h - a set of rules that changes a little at a time, and the vectors that it was; see classify_set.c. */
#ifndef CANAL_CLASSIFY_SET_H
#define CANAL_CLASSIFY_SET_H
#include "classify.h"

struct classify_set {
	uint64_t *members;       /* a bit for each rule */
	uint64_t *head;          /* the vector that it will be: a bit for each word of members that is not 0, ... */
	uint32_t *chunks;        /* ... and where each chunk of them is kept: in head[] */
	uint32_t *changed;       /* chunks to be kept anew */
	bool *is_changed;
	size_t n_changed;
	uint32_t n_blocks;

	uint64_t *words;         /* what is kept: chunks and vectors */
	size_t used, room;       /* words */
	struct classify_slot *slots;
	size_t n_slots, n_kept;
};

/* False when there is no memory; to be freed all the same. */
bool classify_set_init(struct classify_set *set, size_t n_rules);
void classify_set_free(struct classify_set *set);
void classify_set_add(struct classify_set *set, uint32_t rule);
void classify_set_remove(struct classify_set *set, uint32_t rule);
/* Say of 64 rules at once whether they are in the set. */
void classify_set_word(struct classify_set *set, uint32_t index, uint64_t word);
void classify_set_clear(struct classify_set *set);
/* The empty set becomes what three vectors have in common. */
void classify_set_intersect(struct classify_set *set, const uint32_t vectors[3]);
/* The vector of what it holds now. CANAL_OK, CANAL_ENOMEM, or CANAL_ERANGE when all of them are too long. */
int classify_set_take(struct classify_set *set, uint32_t *vector);
/* Let the words from `used` on go. The set is empty. */
void classify_set_forget(struct classify_set *set, size_t used);
#endif
