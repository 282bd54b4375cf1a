/* conntrack_table.h - where flows are kept: hash, buckets, entries; see conntrack_table.c. */
#ifndef CANAL_CONNTRACK_TABLE_H
#define CANAL_CONNTRACK_TABLE_H
#include "conntrack.h"

enum { BUCKET_SLOTS = 8 };
enum { CT_KEY_WORDS = 5 };
#define CT_IN_USE 0xfffffffeu       /* ct_entry.next_free of an entry that holds a flow */
#define CT_FREE_END 0xffffffffu     /* ... of the last free one */

/* 64 bytes, one cache line. */
struct ct_bucket {
	uint16_t tag[BUCKET_SLOTS];     /* 16 bits of the hash, 0 = free                                   */
	uint32_t index[BUCKET_SLOTS];   /* of the entry                                                    */
	uint16_t overflow;              /* entries that wanted this bucket or an earlier one and lie after */
	uint8_t pad[14];
};

struct canal_ct {
	/* fixed */
	struct ct_bucket *buckets;
	struct ct_entry *entries;
	uint32_t bucket_mask;
	uint32_t probe_max;             /* buckets that one search may visit */
	uint32_t max, share;
	uint64_t secret[4];
	/* changing */
	uint32_t now_ms;                /* the latest time that a caller told */
	uint32_t count;                 /* entries in use */
	uint32_t high;                  /* entries [high, max) were never touched */
	uint32_t free_first;            /* last freed, first used again */
	uint32_t sweep_at, evict_at;
	uint32_t dice;                  /* the last throw */
	uint32_t owned[CANAL_PORTS_MAX];
};

struct ct_key {
	uint64_t words[CT_KEY_WORDS];   /* as in struct ct_entry: addr[0], addr[1], ports, proto, family; the last two bytes 0 */
	uint64_t hash;
	uint8_t source;                 /* which end the flow's source is */
};

struct ct_batch {
	struct ct_key keys[CANAL_BATCH_MAX];
	struct ct_entry *found[CANAL_BATCH_MAX];
};

void ct_key_of_flow(const struct canal_ct *ct, const struct canal_flow *flow, struct ct_key *key);
/* Fill found[0..n) for keys[0..n); NULL where the flow is not there. The time of what is there may be over. */
void ct_table_find(const struct canal_ct *ct, struct ct_batch *batch, size_t n);
struct ct_entry *ct_table_find_one(const struct canal_ct *ct, const struct ct_key *key);
/* A zeroed entry with this key, or NULL: no free entry, or every bucket that it may lie in is full. */
struct ct_entry *ct_table_insert(struct canal_ct *ct, const struct ct_key *key);
void ct_table_remove(struct canal_ct *ct, struct ct_entry *entry);

static inline bool ct_in_use(const struct ct_entry *entry) { return entry->next_free == CT_IN_USE; }
static inline bool ct_expired(const struct canal_ct *ct, const struct ct_entry *entry)
{
	return (int32_t)(entry->expires_ms - ct->now_ms) <= 0;
}
#endif
