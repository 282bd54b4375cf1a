/*
 * conntrack_table.c - where flows are kept: 64-byte buckets of tags and indices, and the entries that they name.
 *
 * Place:      a part of conntrack.c; knows nothing of states and time.
 * Structure:
 *
 *     key ─hash─► home bucket                                                    entries (128 bytes each)
 *                 | tag x 8 | index x 8 | overflow |  ──index──►  | 0 | 1 | 2 | ... | high ... max - 1: never touched |
 *                 | next bucket, if overflow > 0   |              freed ones: a list, last freed first
 *
 *             A search compares eight 16-bit tags at once and then nearly always one entry. `overflow` counts the entries that passed
 *             this bucket on the way to their place, so a search stops where none did, and removal leaves nothing behind.
 *             A batch is searched in three rounds: keys, buckets, entries; each asks for the lines that the next one reads.
 * Invariants: an entry in use is named by exactly one slot, at most probe_max - 1 buckets after its home; no two have the same key.
 *             The ends of a key are in canonical order, so both directions have the same key and hash.
 *             The hash is keyed by a secret: nobody outside can choose flows that collide.
 * Threads:    one at a time.
 * Limits:     2^24 entries; the region is reserved at once and becomes resident where it was used.
 * Source:     tags and overflow counts: F14 (Bronson, Shi 2019); hash: wyhash's multiply-and-fold.
 *             Sapphire Rapids, one shared core, hits through canal_ct_find, 1,000 | 1,000,000 flows in random order:
 *                 this                            110 | 20 M lookups/s; without huge pages 16
 *                 one search after the other      80 |  3
 */
#include "conntrack_table.h"

#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

_Static_assert(sizeof(struct ct_bucket) == 64, "a bucket is one cache line");
_Static_assert(sizeof(struct ct_entry) == 128, "an entry is two cache lines");
_Static_assert(offsetof(struct ct_entry, packets) == 64, "a hit reads the first line");
_Static_assert(offsetof(struct ct_entry, family) == 37, "the key is bytes 0 to 37");

#define KEY_END_MASK 0x0000ffffffffffffu   /* of the last word: ports, proto, family */

/* ---- keys ---------------------------------------------------------------------------------------------------------------- */

static inline uint64_t fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash_words(const struct canal_ct *ct, const uint64_t words[CT_KEY_WORDS])
{
	const uint64_t *s = ct->secret;
	uint64_t ends = fold(words[0] ^ s[0], words[1] ^ s[1]) ^ fold(words[2] ^ s[2], words[3] ^ s[3]);

	return fold(ends ^ s[1], words[4] ^ s[2]);
}

static inline unsigned __int128 load_u128(const uint8_t bytes[16])
{
	unsigned __int128 value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

/* Branchless: which end is the smaller one is a coin toss for every flow. */
static inline void make_key(const struct canal_ct *ct, const struct canal_flow *flow, struct ct_key *key)
{
	unsigned __int128 src = load_u128(flow->src), dst = load_u128(flow->dst);
	uint32_t swap = (uint32_t)(src > dst) | ((uint32_t)(src == dst) & (uint32_t)(flow->sport_be > flow->dport_be));
	unsigned __int128 flip = (src ^ dst) & -(unsigned __int128)swap;
	uint32_t ports = (uint32_t)flow->sport_be | (uint32_t)flow->dport_be << 16;

	src ^= flip;
	dst ^= flip;
	ports = swap ? ports << 16 | ports >> 16 : ports;
	key->words[0] = (uint64_t)src;
	key->words[1] = (uint64_t)(src >> 64);
	key->words[2] = (uint64_t)dst;
	key->words[3] = (uint64_t)(dst >> 64);
	key->words[4] = ports | (uint64_t)flow->proto << 32 | (uint64_t)flow->family << 40;
	key->source = (uint8_t)swap;
	key->hash = hash_words(ct, key->words);
}

void ct_key_of_flow(const struct canal_ct *ct, const struct canal_flow *flow, struct ct_key *key)
{
	make_key(ct, flow, key);
}

static inline void words_of_entry(const struct ct_entry *entry, uint64_t words[CT_KEY_WORDS])
{
	memcpy(words, entry, sizeof(words[0]) * CT_KEY_WORDS);
	words[4] &= KEY_END_MASK;
}

static inline bool has_key(const struct ct_entry *entry, const struct ct_key *key)
{
	uint64_t words[CT_KEY_WORDS];

	words_of_entry(entry, words);
	return ((words[0] ^ key->words[0]) | (words[1] ^ key->words[1]) | (words[2] ^ key->words[2]) | (words[3] ^ key->words[3])
	        | (words[4] ^ key->words[4])) == 0;
}

/* ---- buckets ------------------------------------------------------------------------------------------------------------- */

static inline uint16_t tag_of(uint64_t hash)
{
	uint16_t tag = (uint16_t)(hash >> 48);

	return tag ? tag : 1;
}

static inline struct ct_bucket *bucket_at(const struct canal_ct *ct, uint64_t hash, uint32_t distance)
{
	return &ct->buckets[((uint32_t)hash + distance) & ct->bucket_mask];
}

/* Two bits a slot, both set where the tag is this one. */
static inline uint32_t match(const struct ct_bucket *bucket, uint16_t tag)
{
#ifdef __SSE2__
	__m128i tags = _mm_load_si128((const __m128i *)(const void *)bucket->tag);

	return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag)));
#else
	uint32_t bits = 0;

	for (uint32_t i = 0; i < BUCKET_SLOTS; i++)
		bits |= (bucket->tag[i] == tag ? 3u : 0u) << 2 * i;
	return bits;
#endif
}

static inline uint32_t take_slot(uint32_t *bits)
{
	uint32_t slot = (uint32_t)__builtin_ctz(*bits) / 2;

	*bits &= *bits - 1;
	*bits &= *bits - 1;
	return slot;
}

struct ct_entry *ct_table_find_one(const struct canal_ct *ct, const struct ct_key *key)
{
	for (uint32_t distance = 0; distance < ct->probe_max; distance++) {
		const struct ct_bucket *bucket = bucket_at(ct, key->hash, distance);
		uint32_t bits = match(bucket, tag_of(key->hash));

		while (bits) {
			struct ct_entry *entry = &ct->entries[bucket->index[take_slot(&bits)]];

			if (has_key(entry, key))
				return entry;
		}
		if (bucket->overflow == 0)
			return NULL;
	}
	return NULL;
}

/* The first entry of the home bucket with this tag: nearly always the right one. */
static inline struct ct_entry *candidate(const struct canal_ct *ct, const struct ct_key *key)
{
	const struct ct_bucket *home = bucket_at(ct, key->hash, 0);
	uint32_t bits = match(home, tag_of(key->hash));

	return bits ? &ct->entries[home->index[take_slot(&bits)]] : NULL;
}

void ct_table_find(const struct canal_ct *ct, struct ct_batch *batch, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		batch->found[i] = candidate(ct, &batch->keys[i]);
		__builtin_prefetch(batch->found[i]);
	}
	for (size_t i = 0; i < n; i++)
		if (unlikely(!batch->found[i] || !has_key(batch->found[i], &batch->keys[i])))
			batch->found[i] = ct_table_find_one(ct, &batch->keys[i]);
}

/* Take a slot for this hash; false when every bucket that it may lie in is full. */
static bool claim(struct canal_ct *ct, uint64_t hash, uint32_t index)
{
	for (uint32_t distance = 0; distance < ct->probe_max; distance++) {
		struct ct_bucket *bucket = bucket_at(ct, hash, distance);
		uint32_t bits = match(bucket, 0), slot;

		if (!bits)
			continue;
		slot = take_slot(&bits);
		bucket->tag[slot] = tag_of(hash);
		bucket->index[slot] = index;
		while (distance-- > 0)
			bucket_at(ct, hash, distance)->overflow++;
		return true;
	}
	return false;
}

static void release(struct canal_ct *ct, uint64_t hash, uint32_t index)
{
	for (uint32_t distance = 0; distance < ct->probe_max; distance++) {
		struct ct_bucket *bucket = bucket_at(ct, hash, distance);
		uint32_t bits = match(bucket, tag_of(hash));

		while (bits) {
			uint32_t slot = take_slot(&bits);

			if (bucket->index[slot] == index) {
				bucket->tag[slot] = 0;
				return;
			}
		}
		bucket->overflow--;
	}
}

/* ---- entries ------------------------------------------------------------------------------------------------------------- */

struct ct_entry *ct_table_insert(struct canal_ct *ct, const struct ct_key *key)
{
	bool reuse = ct->free_first != CT_FREE_END;
	uint32_t index = reuse ? ct->free_first : ct->high;
	struct ct_entry *entry = &ct->entries[index];

	if (index >= ct->max || !claim(ct, key->hash, index))
		return NULL;
	if (reuse)
		ct->free_first = entry->next_free;
	else
		ct->high++;
	ct->count++;
	memset(entry, 0, sizeof(*entry));
	memcpy(entry, key->words, sizeof(key->words));
	entry->next_free = CT_IN_USE;
	return entry;
}

void ct_table_remove(struct canal_ct *ct, struct ct_entry *entry)
{
	uint32_t index = (uint32_t)(entry - ct->entries);
	uint64_t words[CT_KEY_WORDS];

	words_of_entry(entry, words);
	release(ct, hash_words(ct, words), index);
	entry->next_free = ct->free_first;
	ct->free_first = index;
	ct->count--;
}
