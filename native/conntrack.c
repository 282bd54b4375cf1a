/*
 * conntrack.c - the flow table: who talks to whom, since when, and what was decided about it.
 *
 * Place:      after parse and before judge.c, which judges only packets that find no entry. conntrack_table.c keeps the entries,
 *             conntrack_state.c knows the states; here is time, ownership, and what happens when the table is full.
 * Structure:
 *
 *     ct_lookup ──► entry ──────────────────────────► ct_update     count, advance the state, new expiry
 *               └─► NULL, judged ──► ct_insert ──► ct_update        full: evict what is not settled
 *     canal_ct_sweep    a hand that goes round the entries, some at a time: frees what has expired
 *
 * Invariants: an expired entry is never found, swept or not. No entry is removed by a lookup.
 *             A packet costs a bounded amount of work, whatever the table holds: a search of probe_max buckets, EVICT_STEPS entries.
 *             When the table is full, or an owner (a pod's port) has its `share` of it in use, flows that both ends agreed to stay, and
 *             those that nobody answered make room: a flood of SYNs displaces itself, and takes no pod its next connection.
 * Threads:    one at a time (the worker).
 * Limits:     clocks are compared modulo 2^32 ms: the sweep must pass every entry once in 24 days.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "conntrack_state.h"
#include "conntrack_table.h"

enum { MAX_LIMIT = 1 << 24, PROBE_MAX = 16, EVICT_STEPS = 64 };
enum { SMALL_PAGES = 4 << 20 };   /* bytes of a region that never become huge pages */

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

/* Zeroed memory that becomes resident page by page; by huge pages where the table is big, for the TLB's sake. */
static void *reserve(size_t bytes)
{
	void *region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (region == MAP_FAILED)
		return NULL;
	if (bytes > SMALL_PAGES)
		(void)madvise((uint8_t *)region + SMALL_PAGES, bytes - SMALL_PAGES, MADV_HUGEPAGE);   /* only faster; may be refused */
	return region;
}

static size_t buckets_bytes(const struct canal_ct *ct)
{
	return ((size_t)ct->bucket_mask + 1) * sizeof(*ct->buckets);
}

/* Buckets for this many entries, 4 to 6.4 in each when the table is full. */
static uint32_t buckets_for(uint32_t max)
{
	uint32_t n = 1;

	while ((uint64_t)n * BUCKET_SLOTS * 4 < (uint64_t)max * 5)
		n *= 2;
	return n;
}

/* splitmix64: the seed's bits in every bit of the secrets. */
static void derive_secrets(struct canal_ct *ct, const uint64_t seed[2])
{
	for (size_t i = 0; i < sizeof(ct->secret) / sizeof(ct->secret[0]); i++) {
		uint64_t z = seed[i & 1] + (i + 1) * 0x9e3779b97f4a7c15u;

		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
		z = (z ^ z >> 27) * 0x94d049bb133111ebu;
		ct->secret[i] = z ^ z >> 31;
	}
}

int canal_ct_new(uint32_t max, uint32_t share, const uint64_t *seed, struct canal_ct **out)
{
	struct canal_ct *ct;
	uint32_t n_buckets = buckets_for(max);

	*out = NULL;
	if (max == 0 || share == 0 || !seed)
		return CANAL_EINVAL;
	if (max > MAX_LIMIT)
		return CANAL_ERANGE;
	ct = calloc(1, sizeof(*ct));
	if (!ct)
		return CANAL_ENOMEM;
	ct->max = max;
	ct->share = share;
	ct->free_first = CT_FREE_END;
	ct->bucket_mask = n_buckets - 1;
	ct->probe_max = n_buckets < PROBE_MAX ? n_buckets : PROBE_MAX;
	derive_secrets(ct, seed);
	ct->dice = (uint32_t)ct->secret[3];
	ct->buckets = reserve(buckets_bytes(ct));
	ct->entries = reserve(max * sizeof(*ct->entries));
	if (!ct->buckets || !ct->entries) {
		canal_ct_free(ct);
		return CANAL_ENOMEM;
	}
	*out = ct;
	return CANAL_OK;
}

void canal_ct_free(struct canal_ct *ct)
{
	if (!ct)
		return;
	if (ct->buckets)
		munmap(ct->buckets, buckets_bytes(ct));
	if (ct->entries)
		munmap(ct->entries, ct->max * sizeof(*ct->entries));
	free(ct);
}

/* ---- lookup -------------------------------------------------------------------------------------------------------------- */

static uint32_t hash32(uint64_t hash)
{
	return (uint32_t)(hash >> 20);     /* not the bits that choose the bucket: source ports show these to others */
}

/* No flow of its own: dropped, without ports, or about another flow. */
static bool is_trackable(const struct canal_flow *flow)
{
	return flow->drop == CANAL_DROP_NONE && !(flow->flags & (CANAL_FLOW_LATER_FRAG | CANAL_FLOW_ICMP_ERROR));
}

/* Is what was found this packet's flow, now? */
static inline struct ct_entry *if_live(const struct canal_ct *ct, struct ct_entry *entry, const struct canal_flow *flow,
				       const struct ct_key *key)
{
	if (!entry || ct_expired(ct, entry) || !is_trackable(flow))
		return NULL;
	if (unlikely(ct_state_reopens(entry, flow, entry->original != key->source)))
		return NULL;
	return entry;
}

/* First round of a batch: the key, and ask for the bucket that the second one reads. */
static inline void ask(const struct canal_ct *ct, const struct canal_flow *flow, struct ct_key *key)
{
	ct_key_of_flow(ct, flow, key);
	__builtin_prefetch(&ct->buckets[(uint32_t)key->hash & ct->bucket_mask]);
}

/* What the fragments of a datagram have in common: only the first has ports, and over IPv6 each may say another protocol. */
static uint32_t hash_of_ends(const struct canal_ct *ct, const struct canal_flow *flow)
{
	struct canal_flow ends = { .family = flow->family };
	struct ct_key key;

	memcpy(ends.src, flow->src, sizeof(ends.src));
	memcpy(ends.dst, flow->dst, sizeof(ends.dst));
	ct_key_of_flow(ct, &ends, &key);
	return hash32(key.hash);
}

static void lookup_chunk(struct canal_ct *ct, struct packet *const *packets, size_t n)
{
	struct ct_batch batch;

	for (size_t i = 0; i < n; i++)
		ask(ct, &packets[i]->flow, &batch.keys[i]);
	ct_table_find(ct, &batch, n);
	for (size_t i = 0; i < n; i++) {
		struct packet *p = packets[i];

		p->hash = unlikely(p->flow.flags & CANAL_FLOW_FRAG) ? hash_of_ends(ct, &p->flow) : hash32(batch.keys[i].hash);
		p->ct = if_live(ct, batch.found[i], &p->flow, &batch.keys[i]);
		p->flow.flags &= (uint8_t)~CANAL_FLOW_REPLY;
		if (p->ct && p->ct->original != batch.keys[i].source)
			p->flow.flags |= CANAL_FLOW_REPLY;
	}
}

void ct_lookup(struct canal_ct *ct, struct packet *const *packets, size_t n)
{
	for (size_t first = 0; first < n; first += CANAL_BATCH_MAX)
		lookup_chunk(ct, packets + first, n - first < CANAL_BATCH_MAX ? n - first : CANAL_BATCH_MAX);
}

uint32_t ct_hash(const struct canal_ct *ct, const struct canal_flow *flow)
{
	struct ct_key key;

	ct_key_of_flow(ct, flow, &key);
	return hash32(key.hash);
}

struct ct_entry *ct_find_related(struct canal_ct *ct, const struct canal_flow *quoted, bool *quoted_is_reply)
{
	struct ct_key key;
	struct ct_entry *entry;

	*quoted_is_reply = false;
	ct_key_of_flow(ct, quoted, &key);
	entry = ct_table_find_one(ct, &key);
	if (!entry || ct_expired(ct, entry) || !is_trackable(quoted))
		return NULL;
	*quoted_is_reply = entry->original != key.source;
	return entry;
}

/* ---- change -------------------------------------------------------------------------------------------------------------- */

void ct_remove(struct canal_ct *ct, struct ct_entry *entry)
{
	if (entry->owner != CT_NO_OWNER)
		ct->owned[entry->owner]--;
	ct_table_remove(ct, entry);
}

/* Where to look for the next victim. Among all, a hand goes round; one owner's entries may lie anywhere, so they are looked for by
 * throwing dice (a linear congruential generator), where there are too many to look at all. */
static struct ct_entry *next_victim(struct canal_ct *ct, uint32_t owner)
{
	if (owner != CT_NO_OWNER && ct->high > EVICT_STEPS) {
		ct->dice = ct->dice * 1664525u + 1013904223u;
		return &ct->entries[(uint64_t)ct->dice * ct->high >> 32];
	}
	ct->evict_at = ct->evict_at + 1 < ct->high ? ct->evict_at + 1 : 0;
	return &ct->entries[ct->evict_at];
}

/* Make room among the flows of this owner, or with CT_NO_OWNER among all; false when none of the next EVICT_STEPS entries may go. */
static bool evict(struct canal_ct *ct, uint32_t owner)
{
	for (uint32_t i = 0; i < EVICT_STEPS && i < ct->high; i++) {
		struct ct_entry *entry = next_victim(ct, owner);

		if (!ct_in_use(entry) || (owner != CT_NO_OWNER && entry->owner != owner))
			continue;
		if (ct_expired(ct, entry) || !ct_state_settled(entry)) {
			ct_remove(ct, entry);
			return true;
		}
	}
	return false;
}

struct ct_entry *ct_insert(struct canal_ct *ct, const struct packet *p, uint32_t owner, uint64_t now_ms, enum canal_drop *drop)
{
	struct ct_entry first = { .owner = owner < CANAL_PORTS_MAX ? owner : CT_NO_OWNER };
	struct ct_entry *entry;
	struct ct_key key;

	ct->now_ms = (uint32_t)now_ms;
	*drop = CANAL_DROP_NONE;
	ct_key_of_flow(ct, &p->flow, &key);
	entry = ct_table_find_one(ct, &key);
	if (if_live(ct, entry, &p->flow, &key))
		return entry;
	if (!ct_state_open(&first, &p->flow)) {
		*drop = CANAL_DROP_CT_INVALID;
		return NULL;
	}
	if (entry)
		ct_remove(ct, entry);
	if (first.owner != CT_NO_OWNER && ct->owned[first.owner] >= ct->share && !evict(ct, first.owner)) {
		*drop = CANAL_DROP_CT_SHARE;
		return NULL;
	}
	if (ct->count >= ct->max && !evict(ct, CT_NO_OWNER))
		entry = NULL;
	else
		entry = ct_table_insert(ct, &key);
	if (!entry) {
		*drop = CANAL_DROP_CT_FULL;
		return NULL;
	}
	entry->owner = first.owner;
	if (entry->owner != CT_NO_OWNER)
		ct->owned[entry->owner]++;
	entry->original = key.source;
	entry->state = first.state;
	entry->in[0] = p->in;
	entry->out[0] = p->out;
	entry->verdict = CANAL_ALLOW;
	entry->icmp_type = p->flow.icmp_type;
	entry->icmp_code = p->flow.icmp_code;
	entry->created_ms = entry->seen_ms = ct->now_ms;
	entry->expires_ms = ct->now_ms + ct_state_timeout_ms(entry);
	return entry;
}

enum canal_drop ct_update(struct canal_ct *ct, struct ct_entry *entry, const struct packet *p, uint64_t now_ms)
{
	uint32_t reply = (p->flow.flags & CANAL_FLOW_REPLY) != 0;

	ct->now_ms = (uint32_t)now_ms;
	if (unlikely(!ct_state_advance(entry, &p->flow, reply)))
		return CANAL_DROP_CT_INVALID;
	entry->packets[reply] += p->vnet.segments;
	entry->bytes[reply] += p->total;
	entry->seen_ms = ct->now_ms;
	entry->expires_ms = ct->now_ms + ct_state_timeout_ms(entry);
	return CANAL_DROP_NONE;
}

static bool leads_to(const struct ct_entry *entry, uint32_t port)
{
	const uint32_t targets[] = { entry->in[0], entry->in[1], entry->out[0], entry->out[1] };

	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
		if ((targets[i] & (CANAL_TARGET_KIND | CANAL_TARGET_INDEX)) == (CANAL_TARGET_PORT | port))
			return true;
	return entry->owner == port;
}

uint32_t ct_remove_port(struct canal_ct *ct, uint32_t port)
{
	uint32_t removed = 0;

	for (uint32_t i = 0; i < ct->high; i++) {
		if (!ct_in_use(&ct->entries[i]) || !leads_to(&ct->entries[i], port))
			continue;
		ct_remove(ct, &ct->entries[i]);
		removed++;
	}
	return removed;
}

int canal_ct_sweep(struct canal_ct *ct, uint64_t now_ms, uint32_t n)
{
	int freed = 0;

	ct->now_ms = (uint32_t)now_ms;
	for (uint32_t i = 0; i < n && i < ct->high; i++) {
		struct ct_entry *entry = &ct->entries[ct->sweep_at];

		ct->sweep_at = ct->sweep_at + 1 < ct->high ? ct->sweep_at + 1 : 0;
		if (ct_in_use(entry) && ct_expired(ct, entry)) {
			ct_remove(ct, entry);
			freed++;
		}
	}
	return freed;
}

/* ---- the table by itself, as canal.h offers it ----------------------------------------------------------------------------- */

static void find_chunk(struct canal_ct *ct, const struct canal_flow *flows, size_t n, int32_t *results)
{
	struct ct_batch batch;

	for (size_t i = 0; i < n; i++)
		ask(ct, &flows[i], &batch.keys[i]);
	ct_table_find(ct, &batch, n);
	for (size_t i = 0; i < n; i++) {
		if (!if_live(ct, batch.found[i], &flows[i], &batch.keys[i]))
			results[i] = -(int32_t)flows[i].drop;
		else
			results[i] = CANAL_CT_HIT | (batch.found[i]->original != batch.keys[i].source ? CANAL_CT_IS_REPLY : 0);
	}
}

int canal_ct_find(struct canal_ct *ct, const struct canal_flow *flows, size_t n, int32_t *results)
{
	for (size_t first = 0; first < n; first += CANAL_BATCH_MAX)
		find_chunk(ct, flows + first, n - first < CANAL_BATCH_MAX ? n - first : CANAL_BATCH_MAX, results + first);
	return CANAL_OK;
}

static int32_t track(struct canal_ct *ct, const struct canal_flow *flow, uint32_t owner, uint64_t now_ms)
{
	struct packet p = { .total = flow->total_size, .vnet = { .segments = 1 }, .flow = *flow };
	int32_t result = CANAL_CT_HIT;
	enum canal_drop drop;

	ct_lookup(ct, (struct packet *const[]){ &p }, 1);
	if (!is_trackable(flow))
		return -(int32_t)flow->drop;
	if (owner < CANAL_PORTS_MAX)
		p.in = CANAL_TARGET_PORT | owner;
	if (!p.ct) {
		p.ct = ct_insert(ct, &p, owner, now_ms, &drop);
		if (!p.ct)
			return -(int32_t)drop;
		result = CANAL_CT_INSERTED;
	}
	drop = ct_update(ct, p.ct, &p, now_ms);
	if (drop)
		return -(int32_t)drop;
	return p.flow.flags & CANAL_FLOW_REPLY ? result | CANAL_CT_IS_REPLY : result;
}

int canal_ct_track(struct canal_ct *ct, const struct canal_flow *flows, const uint32_t *owner, size_t n, uint64_t now_ms, int32_t *results)
{
	ct->now_ms = (uint32_t)now_ms;
	for (size_t i = 0; i < n; i++)
		results[i] = track(ct, &flows[i], owner[i], now_ms);
	return CANAL_OK;
}

int canal_ct_count(const struct canal_ct *ct)
{
	return (int)ct->count;
}

static void describe(const struct ct_entry *entry, uint32_t now_ms, struct canal_flow_info *flow)
{
	uint32_t original = entry->original & 1;
	int32_t left_ms = (int32_t)(entry->expires_ms - now_ms);

	*flow = (struct canal_flow_info){
		.sport_be = entry->port_be[original], .dport_be = entry->port_be[!original],
		.proto = entry->proto, .family = entry->family, .state = entry->state, .verdict = entry->verdict,
		.in_target = entry->in[0], .out_target = entry->out[0], .rule = { entry->rule[0], entry->rule[1] },
		.packets = { entry->packets[0], entry->packets[1] }, .bytes = { entry->bytes[0], entry->bytes[1] },
		.generation = entry->generation,
		.age_ms = now_ms - entry->created_ms, .idle_ms = now_ms - entry->seen_ms,
		.expires_ms = left_ms > 0 ? (uint32_t)left_ms : 0,
	};
	memcpy(flow->src, entry->addr[original], 16);
	memcpy(flow->dst, entry->addr[!original], 16);
}

/* The cursor is the index of the next entry to look at. Expired entries are not shown. */
int canal_ct_read(struct canal_ct *ct, uint64_t now_ms, uint32_t *cursor, struct canal_flow_info *flows, size_t n)
{
	uint32_t at = *cursor;
	size_t count = 0;

	for (; at < ct->high && count < n; at++) {
		const struct ct_entry *entry = &ct->entries[at];

		if (ct_in_use(entry) && (int32_t)(entry->expires_ms - (uint32_t)now_ms) > 0)
			describe(entry, (uint32_t)now_ms, &flows[count++]);
	}
	*cursor = at < ct->high ? at : 0;
	return (int)count;
}
