/*
 * fragment.c - the verdict of a first fragment for the later ones, which have no ports; and cutting packets that are too big.
 *
 * Place:      pipeline.c asks frag_check() for every fragment before it is judged, frag_remember() after the first one passed;
 *             frag_split() when a packet exceeds the path's MTU and may be fragmented.
 * Structure:
 *
 *     heads[hash & mask] -> entry -> entry         one entry a datagram whose first fragment was seen and that is not yet complete
 *                           |
 *                           ranges [first, end) ...   what was let through: sorted, disjoint, neighbours merged
 *     oldest <-> ... <-> newest                    all entries by birth: they die in that order, 30 s later
 *
 * Invariants: no two fragments that are let through overlap, so no receiver, whatever its rule for overlaps, can build a datagram with
 *             another transport header than the one that was judged. A fragment that adds nothing new is dropped alone (networks
 *             duplicate); one that overlaps in part, or disagrees about the datagram's end, makes its datagram dead.
 *             Only first fragments take an entry: later ones without it are dropped and leave no state.
 *             A complete datagram's entry is free again, so only unfinished ones count.
 *             The hash is keyed; one source (target) holds at most half of the table.
 * Threads:    owned by one worker.
 * Limits:     FRAG_RANGES holes in a datagram: more are dropped as FRAG_FULL.
 * Source:     RFC 791 3.2 (fragmentation), 815, 5722 (overlaps), 8200 4.5, 1858.
 */
#include "fragment.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "csum.h"

enum { FRAG_LIFE_MS = 30000, FRAG_RANGES = 32, FRAG_HOLDERS = 256 };
enum { IPV4_HEADER = 20, IPV4_HEADER_MAX = 60, IPV6_HEADER = 40, EXT_FRAGMENT = 8 };
enum { IPV4_MF = 0x2000, IPV4_OFFSET = 0x1fff };
enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_COPIED = 0x80 };   /* RFC 791 3.1 */

#define NOBODY UINT32_MAX

struct range { uint16_t first, end; };

struct frag_key {
	uint8_t src[16];
	uint8_t dst[16];
	uint32_t id;
	uint32_t in;
	uint32_t proto;              /* IPv4; 0 for IPv6, where each fragment may say another next header (RFC 8200 4.5) */
	uint32_t family;
};

struct frag_entry {
	struct frag_key key;
	struct frag_verdict verdict;
	uint64_t born_ms;
	uint32_t hash;
	uint32_t next_in_head;       /* also links the free entries */
	uint32_t older, newer;
	uint16_t size;               /* bytes of the datagram's payload, 0 until the last fragment came */
	uint8_t n_ranges;
	bool has_verdict;
	bool dead;                   /* overlapped */
	struct range ranges[FRAG_RANGES];
};

struct frag_table {
	uint64_t seed[2];
	uint32_t max, count, mask;
	uint32_t free;
	uint32_t oldest, newest;
	uint32_t held[FRAG_HOLDERS];   /* entries by keyed hash of the target that they came from */
	uint32_t *heads;
	struct frag_entry *entries;
};

/* ---- the table ------------------------------------------------------------------------------------------------------------- */

struct frag_table *frag_new(uint32_t max, const uint64_t seed[2])
{
	struct frag_table *t = calloc(1, sizeof(*t));
	uint32_t n_heads = 1;

	if (!t)
		return NULL;
	while (n_heads < max && n_heads < 1u << 31)
		n_heads *= 2;
	t->heads = malloc(n_heads * sizeof(*t->heads));
	t->entries = calloc(max ? max : 1, sizeof(*t->entries));
	if (!t->heads || !t->entries) {
		frag_free(t);
		return NULL;
	}
	memcpy(t->seed, seed, sizeof(t->seed));
	t->max = max;
	t->mask = n_heads - 1;
	t->oldest = t->newest = t->free = NOBODY;
	for (uint32_t i = 0; i < n_heads; i++)
		t->heads[i] = NOBODY;
	for (uint32_t i = max; i-- > 0;) {
		t->entries[i].next_in_head = t->free;
		t->free = i;
	}
	return t;
}

void frag_free(struct frag_table *t)
{
	if (!t)
		return;
	free(t->heads);
	free(t->entries);
	free(t);
}

uint32_t frag_count(const struct frag_table *t)
{
	return t->count;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint32_t hash_key(const struct frag_table *t, const struct frag_key *key)
{
	uint64_t words[sizeof(*key) / 8];
	uint64_t hash = t->seed[1];

	_Static_assert(sizeof(*key) == 48, "no padding: the key is hashed and compared as bytes");
	memcpy(words, key, sizeof(*key));
	for (size_t i = 0; i < sizeof(words) / 8; i += 2)
		hash = mix(words[i] ^ t->seed[0] ^ hash, words[i + 1] ^ t->seed[1]);
	return (uint32_t)(hash ^ hash >> 32);
}

static uint32_t *held_by(struct frag_table *t, uint32_t in)
{
	return &t->held[mix(in ^ t->seed[0], t->seed[1] | 1) % FRAG_HOLDERS];
}

static struct frag_key key_of(const struct packet *p)
{
	struct frag_key key = { .id = p->flow.frag_id, .in = p->in, .family = p->flow.family };

	memcpy(key.src, p->flow.src, sizeof(key.src));
	memcpy(key.dst, p->flow.dst, sizeof(key.dst));
	key.proto = p->flow.family == 4 ? p->flow.proto : 0;
	return key;
}

static void unlink_from_head(struct frag_table *t, uint32_t index)
{
	uint32_t *link = &t->heads[t->entries[index].hash & t->mask];

	while (*link != index)
		link = &t->entries[*link].next_in_head;
	*link = t->entries[index].next_in_head;
}

static void remove_entry(struct frag_table *t, struct frag_entry *e)
{
	uint32_t index = (uint32_t)(e - t->entries);

	unlink_from_head(t, index);
	*(e->older == NOBODY ? &t->oldest : &t->entries[e->older].newer) = e->newer;
	*(e->newer == NOBODY ? &t->newest : &t->entries[e->newer].older) = e->older;
	--*held_by(t, e->key.in);
	e->next_in_head = t->free;
	t->free = index;
	t->count--;
}

uint32_t frag_sweep(struct frag_table *t, uint64_t now_ms, uint32_t n)
{
	uint32_t freed = 0;

	while (freed < n && t->oldest != NOBODY && now_ms >= t->entries[t->oldest].born_ms + FRAG_LIFE_MS) {
		remove_entry(t, &t->entries[t->oldest]);
		freed++;
	}
	return freed;
}

static struct frag_entry *find_entry(struct frag_table *t, const struct frag_key *key)
{
	uint32_t hash = hash_key(t, key);

	for (uint32_t i = t->heads[hash & t->mask]; i != NOBODY; i = t->entries[i].next_in_head) {
		struct frag_entry *e = &t->entries[i];
		if (e->hash == hash && memcmp(&e->key, key, sizeof(*key)) == 0)
			return e;
	}
	return NULL;
}

/* NULL when the table, or the source's half of it, is in use. */
static struct frag_entry *add_entry(struct frag_table *t, const struct frag_key *key, uint64_t now_ms)
{
	uint32_t index = t->free;
	uint32_t *held = held_by(t, key->in);

	if (index == NOBODY || *held >= t->max - t->max / 2)
		return NULL;
	struct frag_entry *e = &t->entries[index];
	t->free = e->next_in_head;
	memset(e, 0, sizeof(*e));
	e->key = *key;
	e->born_ms = now_ms;
	e->hash = hash_key(t, key);
	e->next_in_head = t->heads[e->hash & t->mask];
	t->heads[e->hash & t->mask] = index;
	e->older = t->newest;
	e->newer = NOBODY;
	*(t->newest == NOBODY ? &t->oldest : &t->entries[t->newest].newer) = index;
	t->newest = index;
	t->count++;
	++*held;
	return e;
}

/* ---- ranges ---------------------------------------------------------------------------------------------------------------- */

/* Where the fragment's own payload starts: for a first one over IPv6, extension headers may lie before the transport header.
 * parse.c walked this chain already; the loop is bounded by the transport header that it found. */
static uint32_t payload_offset(const struct packet *p)
{
	uint32_t at = IPV6_HEADER;
	uint8_t next = p->data[6];

	if (p->flow.family == 4 || p->flow.flags & CANAL_FLOW_LATER_FRAG)
		return p->flow.l4_offset;
	while (next != IPPROTO_FRAGMENT && at + EXT_FRAGMENT <= p->flow.l4_offset) {
		uint32_t words = p->data[at + 1];
		uint32_t size = next == IPPROTO_AH ? (words + 2) * 4 : (words + 1) * 8;
		next = p->data[at];
		at += size;
	}
	return at + EXT_FRAGMENT <= p->flow.l4_offset ? at + EXT_FRAGMENT : p->flow.l4_offset;
}

/* The last fragment says where the datagram ends; nothing may lie beyond, and nobody may say otherwise. */
static bool end_agrees(const struct frag_entry *e, struct range r, bool last)
{
	if (e->size)
		return last ? r.end == e->size : r.end <= e->size;
	return !last || e->n_ranges == 0 || e->ranges[e->n_ranges - 1].end <= r.end;
}

static void insert_range(struct frag_entry *e, uint32_t at, struct range r)
{
	bool joins_left = at > 0 && e->ranges[at - 1].end == r.first;
	bool joins_right = at < e->n_ranges && e->ranges[at].first == r.end;
	struct range *to = &e->ranges[at];
	size_t behind = (size_t)(e->n_ranges - at) * sizeof(*to);

	if (joins_left && joins_right) {
		e->ranges[at - 1].end = to->end;
		memmove(to, to + 1, behind - sizeof(*to));
		e->n_ranges--;
	} else if (joins_left) {
		e->ranges[at - 1].end = r.end;
	} else if (joins_right) {
		to->first = r.first;
	} else {
		memmove(to + 1, to, behind);
		*to = r;
		e->n_ranges++;
	}
}

static enum canal_drop add_range(struct frag_entry *e, struct range r, bool last)
{
	uint32_t at = 0;

	while (at < e->n_ranges && e->ranges[at].end <= r.first)
		at++;
	bool overlaps = at < e->n_ranges && e->ranges[at].first < r.end;
	bool adds_nothing = overlaps && e->ranges[at].first <= r.first && r.end <= e->ranges[at].end;
	if (!end_agrees(e, r, last) || (overlaps && !adds_nothing))
		e->dead = true;
	if (e->dead || overlaps)
		return CANAL_DROP_FRAG_OVERLAP;
	if (e->n_ranges == FRAG_RANGES)
		return CANAL_DROP_FRAG_FULL;
	insert_range(e, at, r);
	if (last)
		e->size = r.end;
	return CANAL_DROP_NONE;
}

static bool is_complete(const struct frag_entry *e)
{
	return e->size && e->n_ranges == 1 && e->ranges[0].first == 0 && e->ranges[0].end == e->size;
}

enum canal_drop frag_check(struct frag_table *t, const struct packet *p, uint64_t now_ms, struct frag_verdict *verdict)
{
	struct frag_key key = key_of(p);
	uint32_t end = p->flow.frag_offset + (p->flow.total_size - payload_offset(p));
	struct range r = { .first = p->flow.frag_offset, .end = (uint16_t)end };
	bool later = p->flow.flags & CANAL_FLOW_LATER_FRAG;

	memset(verdict, 0, sizeof(*verdict));
	frag_sweep(t, now_ms, 2);               /* keeps pace with one new entry a call, and then some */
	struct frag_entry *e = find_entry(t, &key);
	if (e && now_ms >= e->born_ms + FRAG_LIFE_MS) {
		remove_entry(t, e);
		e = NULL;
	}
	if (!e && later)
		return CANAL_DROP_FRAG_NO_FIRST;
	if (!e)
		e = add_entry(t, &key, now_ms);
	if (!e)
		return CANAL_DROP_FRAG_FULL;
	if (e->dead)
		return CANAL_DROP_FRAG_OVERLAP;
	enum canal_drop drop = add_range(e, r, !(p->flow.flags & CANAL_FLOW_MORE_FRAGS));
	if (drop == CANAL_DROP_NONE && later) {
		*verdict = e->verdict;
		if (!e->has_verdict)
			drop = CANAL_DROP_FRAG_NO_FIRST;
	}
	if (is_complete(e))
		remove_entry(t, e);
	return drop;
}

void frag_remember(struct frag_table *t, const struct packet *p, const struct frag_verdict *verdict)
{
	struct frag_key key = key_of(p);
	struct frag_entry *e = find_entry(t, &key);

	if (!e)
		return;
	e->verdict = *verdict;
	e->has_verdict = true;
}

/* ---- cutting --------------------------------------------------------------------------------------------------------------- */

/* Header of all fragments but the first: only options with the copy bit. Returns its size. */
static uint32_t write_later_header(uint8_t *out, const uint8_t *ip, uint32_t header_size)
{
	uint32_t at = IPV4_HEADER, size = IPV4_HEADER;

	memset(out, OPTION_END, IPV4_HEADER_MAX);
	memcpy(out, ip, IPV4_HEADER);
	while (at < header_size && ip[at] != OPTION_END) {
		uint32_t option_size = ip[at] == OPTION_NOP ? 1 : at + 1 < header_size ? ip[at + 1] : 0;
		if (option_size == 0 || at + option_size > header_size)
			break;
		if (ip[at] & OPTION_COPIED) {
			memcpy(out + size, ip + at, option_size);
			size += option_size;
		}
		at += option_size;
	}
	size = (size + 3) / 4 * 4;
	out[0] = (uint8_t)(0x40 | size / 4);
	return size;
}

static void finish_header(uint8_t *ip, uint32_t header_size, uint32_t payload_size, uint32_t offset, bool more)
{
	store_be16(ip + 2, header_size + payload_size);
	store_be16(ip + 6, (more ? (uint32_t)IPV4_MF : 0) | offset / 8);
	csum_ipv4(ip, header_size);
}

uint32_t frag_split(const struct packet *p, uint32_t mtu_bytes, uint32_t headroom, uint8_t *out, size_t out_size,
                    struct canal_span *spans, uint32_t max)
{
	const uint8_t *ip = p->data;
	uint32_t header_size = (ip[0] & 15u) * 4;
	uint32_t field = load_be16(ip + 6);
	uint32_t base = (field & IPV4_OFFSET) * 8;
	uint32_t payload_size = p->flow.total_size - header_size;
	uint8_t later[IPV4_HEADER_MAX];
	uint32_t later_size = write_later_header(later, ip, header_size);
	uint32_t n = 0, done = 0;
	size_t at = 0;

	while (done < payload_size) {
		const uint8_t *head = done ? later : ip;
		uint32_t head_size = done ? later_size : header_size;
		if (mtu_bytes < head_size + 8 || n == max)
			return 0;
		uint32_t left = payload_size - done;
		uint32_t size = left <= mtu_bytes - head_size ? left : (mtu_bytes - head_size) / 8 * 8;
		if (out_size - at < (size_t)headroom + head_size + size)
			return 0;
		uint8_t *to = out + at + headroom;
		memcpy(to, head, head_size);
		memcpy(to + head_size, ip + header_size + done, size);
		finish_header(to, head_size, size, base + done, size < left || field & IPV4_MF);
		spans[n++] = (struct canal_span){ .offset = (uint32_t)(at + headroom), .size = head_size + size };
		at += (size_t)headroom + head_size + size;
		done += size;
	}
	return n;
}
