/*
 * fuzz_conntrack.c - any sequence of packets, sweeps and removals through the flow table, beside an array that is searched end to end.
 *
 * Structure:  input[0] = size of the table, input[1] = entries that one port may own, then 4 bytes a step:
 *
 *             step   | what, time | ends | ports | segment, owner |
 *
 * Invariants: table and array hold the same flows in the same states after every step; what a full table, or a full share, gives up was
 *             not settled; a port never owns more than its share; both directions find the same entry. (The states themselves are
 *             checked elsewhere: the array asks the same conntrack_state.c.)
 * Run:        clang-19 -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -I native -o /tmp/fuzz_conntrack \
 *                 tests/fuzz/fuzz_conntrack.c native/conntrack*.c && /tmp/fuzz_conntrack -max_total_time=60
 */
/* sources: conntrack.c conntrack_table.c conntrack_state.c */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "conntrack_state.h"
#include "conntrack_table.h"

enum { TABLE_MAX = 48, STEP_SIZE = 4, OWNERS = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A flow as the array keeps it: the packet that opened it, and an entry for its state only. */
struct row { bool used; struct canal_flow original; struct ct_entry entry; };

struct twin {
	struct canal_ct *ct;
	struct row rows[TABLE_MAX];
	uint32_t max, share;
	uint64_t now_ms;
};

static void require(bool condition)
{
	if (!condition)
		abort();
}

static struct canal_flow reversed(const struct canal_flow *flow)
{
	struct canal_flow back = *flow;

	memcpy(back.src, flow->dst, 16);
	memcpy(back.dst, flow->src, 16);
	back.sport_be = flow->dport_be;
	back.dport_be = flow->sport_be;
	return back;
}

static bool same(const struct canal_flow *a, const struct canal_flow *b)
{
	return memcmp(a->src, b->src, 16) == 0 && memcmp(a->dst, b->dst, 16) == 0 && a->sport_be == b->sport_be && a->dport_be == b->dport_be
	       && a->proto == b->proto && a->family == b->family;
}

static bool over(const struct twin *t, const struct row *row)
{
	return (int32_t)(row->entry.expires_ms - (uint32_t)t->now_ms) <= 0;
}

static struct row *find(struct twin *t, const struct canal_flow *flow, bool *reply)
{
	struct canal_flow back = reversed(flow);

	for (uint32_t i = 0; i < t->max; i++) {
		struct row *row = &t->rows[i];

		*reply = !same(&row->original, flow);
		if (row->used && (!*reply || same(&row->original, &back)))
			return row;
	}
	return NULL;
}

static uint32_t count(const struct twin *t, uint32_t owner)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < t->max; i++)
		n += t->rows[i].used && (owner == CT_NO_OWNER || t->rows[i].entry.owner == owner);
	return n;
}

/* The table's entry, expired or not. */
static struct ct_entry *raw(const struct twin *t, const struct canal_flow *flow)
{
	struct ct_key key;

	ct_key_of_flow(t->ct, flow, &key);
	return ct_table_find_one(t->ct, &key);
}

/* The table, or the share of an owner, was full and took another flow: one of ours is gone, and it was one that may go. */
static void forget_evicted(struct twin *t, uint32_t owner)
{
	uint32_t gone = 0;

	for (uint32_t i = 0; i < t->max; i++) {
		struct row *row = &t->rows[i];

		if (!row->used || raw(t, &row->original))
			continue;
		require(over(t, row) || !ct_state_settled(&row->entry));
		require(owner == CT_NO_OWNER || row->entry.owner == owner);
		row->used = false;
		gone++;
	}
	require(gone == 1);
}

static bool may_evict(const struct twin *t, uint32_t owner)
{
	for (uint32_t i = 0; i < t->max; i++) {
		const struct row *row = &t->rows[i];

		if (row->used && (owner == CT_NO_OWNER || row->entry.owner == owner) && (over(t, row) || !ct_state_settled(&row->entry)))
			return true;
	}
	return false;
}

static bool share_full(const struct twin *t, uint32_t owner)
{
	return owner != CT_NO_OWNER && count(t, owner) >= t->share;
}

static enum canal_drop refusal(struct twin *t, const struct canal_flow *flow, uint32_t owner, struct row *row)
{
	struct ct_entry first = { .proto = flow->proto };

	if (!ct_state_open(&first, flow))
		return CANAL_DROP_CT_INVALID;
	if (row)
		row->used = false;
	if (share_full(t, owner))
		return may_evict(t, owner) ? CANAL_DROP_NONE : CANAL_DROP_CT_SHARE;
	if (count(t, CT_NO_OWNER) >= t->max && !may_evict(t, CT_NO_OWNER))
		return CANAL_DROP_CT_FULL;
	return CANAL_DROP_NONE;
}

static struct row *open_row(struct twin *t, const struct canal_flow *flow, uint32_t owner)
{
	struct row *row = t->rows;

	if (share_full(t, owner))
		forget_evicted(t, owner);
	else if (count(t, CT_NO_OWNER) >= t->max)
		forget_evicted(t, CT_NO_OWNER);
	while (row->used)
		row++;
	*row = (struct row){ .used = true, .original = *flow,
	                     .entry = { .proto = flow->proto, .verdict = CANAL_ALLOW, .owner = owner, .icmp_type = flow->icmp_type,
	                                .icmp_code = flow->icmp_code } };
	require(ct_state_open(&row->entry, flow));
	return row;
}

static void track(struct twin *t, const struct canal_flow *flow, uint32_t owner)
{
	int32_t result;
	bool reply = false;
	struct row *row = find(t, flow, &reply);
	enum canal_drop drop = CANAL_DROP_NONE;

	require(canal_ct_track(t->ct, flow, &owner, 1, t->now_ms, &result) == CANAL_OK);
	if (flow->flags) {
		require(result == 0);
		return;
	}
	if (!row || over(t, row) || ct_state_reopens(&row->entry, flow, reply)) {
		drop = refusal(t, flow, owner, row);
		if (drop == CANAL_DROP_NONE)
			row = open_row(t, flow, owner);
		reply = false;
		require(drop != CANAL_DROP_NONE || (result & CANAL_CT_INSERTED));
	} else {
		require(result < 0 || (result & CANAL_CT_HIT));
	}
	if (drop == CANAL_DROP_NONE && !ct_state_advance(&row->entry, flow, reply))
		drop = CANAL_DROP_CT_INVALID;
	require(drop ? result == -(int32_t)drop : (result & CANAL_CT_IS_REPLY) == (reply ? CANAL_CT_IS_REPLY : 0));
	if (drop)
		return;
	row->entry.packets[reply]++;
	row->entry.expires_ms = (uint32_t)t->now_ms + ct_state_timeout_ms(&row->entry);
}

static void sweep(struct twin *t)
{
	int freed = 0;

	for (uint32_t i = 0; i < t->max; i++) {
		bool ends = t->rows[i].used && over(t, &t->rows[i]);

		t->rows[i].used = t->rows[i].used && !ends;
		freed += ends;
	}
	require(canal_ct_sweep(t->ct, t->now_ms, t->max) == freed);
}

static void remove_port(struct twin *t, uint32_t port)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < t->max; i++) {
		bool ends = t->rows[i].used && t->rows[i].entry.owner == port;

		t->rows[i].used = t->rows[i].used && !ends;
		n += ends;
	}
	require(ct_remove_port(t->ct, port) == n);
}

static void compare(struct twin *t)
{
	require((uint32_t)canal_ct_count(t->ct) == count(t, CT_NO_OWNER) && count(t, CT_NO_OWNER) <= t->max);
	for (uint32_t i = 0; i < t->max; i++) {
		const struct row *row = &t->rows[i];
		struct canal_flow back = reversed(&row->original);
		const struct ct_entry *entry = row->used ? raw(t, &row->original) : NULL;

		if (!row->used)
			continue;
		require(entry && entry == raw(t, &back) && ct_hash(t->ct, &back) == ct_hash(t->ct, &row->original));
		require(entry->state == row->entry.state && entry->expires_ms == row->entry.expires_ms && entry->owner == row->entry.owner);
		require(memcmp(entry->packets, row->entry.packets, sizeof(entry->packets)) == 0);
	}
}

static struct canal_flow flow_of(const uint8_t *s)
{
	static const uint8_t protos[4] = { IPPROTO_TCP, IPPROTO_TCP, IPPROTO_UDP, 47 };
	struct canal_flow flow = { .family = s[1] & 0x80 ? 6 : 4, .proto = protos[s[1] & 3], .total_size = 100 };

	memset(flow.src + 10, flow.family == 4 ? 0xff : 0, 2);
	memset(flow.dst + 10, flow.family == 4 ? 0xff : 0, 2);
	flow.src[15] = s[1] >> 2 & 3;
	flow.dst[15] = s[1] >> 4 & 3;
	flow.sport_be = s[2] & 15;
	flow.dport_be = s[2] >> 4;
	flow.tcp_flags = s[3] & 0x3f;
	return flow;
}

static void step(struct twin *t, const uint8_t *s)
{
	struct canal_flow flow = flow_of(s);

	t->now_ms += s[0] >> 4 < 12 ? 0 : (uint64_t)1000 << (s[0] & 7);
	switch (s[0] & 15) {
	case 0:
		sweep(t);
		break;
	case 1:
		remove_port(t, s[1] % OWNERS);
		break;
	case 2:
		flow.flags = s[1] & 4 ? CANAL_FLOW_LATER_FRAG : CANAL_FLOW_ICMP_ERROR;
		track(t, &flow, 0);
		break;
	default:
		track(t, &flow, s[3] & 0x80 ? s[3] >> 6 & 1 : CT_NO_OWNER);
	}
	compare(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint64_t seed[2] = { 1, 2 };
	struct twin *t;

	if (size < 2)
		return 0;
	t = calloc(1, sizeof(*t));
	require(t != NULL);
	t->max = 1 + data[0] % TABLE_MAX;
	t->share = 1 + data[1] % 16;
	t->now_ms = (1ull << 32) - 50000;
	require(canal_ct_new(t->max, t->share, seed, &t->ct) == CANAL_OK);
	for (data += 2, size -= 2; size >= STEP_SIZE; data += STEP_SIZE, size -= STEP_SIZE)
		step(t, data);
	canal_ct_free(t->ct);
	free(t);
	return 0;
}
