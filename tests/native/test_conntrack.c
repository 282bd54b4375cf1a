/* test_conntrack.c - what the pipeline asks of the flow table and Python cannot: batches of packets, related errors, ports that go. */
#include <netinet/in.h>

#include "check.h"
#include "conntrack_table.h"

static const uint64_t test_seed[2] = { 3, 4 };

static struct canal_ct *new_table(uint32_t max)
{
	struct canal_ct *ct;

	CHECK_EQ(canal_ct_new(max, max, test_seed, &ct), CANAL_OK);
	return ct;
}

static struct packet udp(uint8_t from, uint8_t to, uint16_t sport, uint16_t dport)
{
	struct packet p = { .total = 100, .vnet = { .segments = 1 }, .flow = { .family = 4, .proto = IPPROTO_UDP, .total_size = 100 } };

	p.flow.src[10] = p.flow.src[11] = p.flow.dst[10] = p.flow.dst[11] = 0xff;
	p.flow.src[12] = p.flow.dst[12] = 10;
	p.flow.src[15] = from;
	p.flow.dst[15] = to;
	p.flow.sport_be = sport;
	p.flow.dport_be = dport;
	return p;
}

static struct packet back(const struct packet *p)
{
	struct packet q = *p;

	memcpy(q.flow.src, p->flow.dst, 16);
	memcpy(q.flow.dst, p->flow.src, 16);
	q.flow.sport_be = p->flow.dport_be;
	q.flow.dport_be = p->flow.sport_be;
	return q;
}

static struct ct_entry *open_flow(struct canal_ct *ct, struct packet *p, uint64_t now_ms)
{
	enum canal_drop drop;
	struct ct_entry *entry = ct_insert(ct, p, CT_NO_OWNER, now_ms, &drop);

	CHECK(entry != NULL);
	CHECK_EQ(drop, CANAL_DROP_NONE);
	CHECK_EQ(ct_update(ct, entry, p, now_ms), CANAL_DROP_NONE);
	return entry;
}

/* Every packet of a batch longer than CANAL_BATCH_MAX gets its entry, its direction and a hash that both directions share. */
static void test_batch(void)
{
	enum { N = 150 };
	struct canal_ct *ct = new_table(4 * N);
	struct packet packets[N], *pointers[N];
	struct ct_entry *entries[N];

	for (uint32_t i = 0; i < N; i++) {
		packets[i] = udp(1, 2, (uint16_t)i, 53);
		pointers[i] = &packets[i];
	}
	ct_lookup(ct, pointers, N);
	for (uint32_t i = 0; i < N; i++) {
		CHECK(packets[i].ct == NULL);
		if (i % 3)
			entries[i] = open_flow(ct, &packets[i], 0);
	}
	for (uint32_t i = 0; i < N; i++) {
		uint32_t hash = packets[i].hash;

		if (i % 2)
			packets[i] = back(&packets[i]);
		packets[i].flow.flags = CANAL_FLOW_DF | CANAL_FLOW_REPLY;      /* what an earlier lookup left */
		packets[i].hash = 0;
		CHECK_EQ(ct_hash(ct, &packets[i].flow), hash);
	}
	ct_lookup(ct, pointers, N);
	for (uint32_t i = 0; i < N; i++) {
		CHECK(packets[i].ct == (i % 3 ? entries[i] : NULL));
		CHECK_EQ(packets[i].flow.flags, CANAL_FLOW_DF | (i % 3 && i % 2 ? CANAL_FLOW_REPLY : 0));
		CHECK_EQ(packets[i].hash, ct_hash(ct, &packets[i].flow));
	}
	canal_ct_free(ct);
}

static void test_hash_is_keyed(void)
{
	static const uint64_t other_seed[2] = { 3, 5 };
	struct canal_ct *ct = new_table(8), *other;
	uint32_t same = 0;

	CHECK_EQ(canal_ct_new(8, 8, other_seed, &other), CANAL_OK);
	for (uint32_t i = 0; i < 1000; i++) {
		struct packet p = udp(1, 2, (uint16_t)i, 53);

		same += ct_hash(ct, &p.flow) % 1024 == ct_hash(other, &p.flow) % 1024;
	}
	CHECK(same < 20);
	canal_ct_free(ct);
	canal_ct_free(other);
}

/* Two packets of a new flow in one batch: the second insertion finds the first one's entry. */
static void test_insert_twice(void)
{
	struct canal_ct *ct = new_table(8);
	struct packet p = udp(1, 2, 10, 20), q = back(&p);
	struct ct_entry *entry = open_flow(ct, &p, 0);
	enum canal_drop drop;

	CHECK(ct_insert(ct, &p, 5, 0, &drop) == entry);
	CHECK(ct_insert(ct, &q, 5, 0, &drop) == entry);
	CHECK_EQ(canal_ct_count(ct), 1);
	CHECK_EQ(entry->packets[0], 1);
	CHECK_EQ(entry->owner, CT_NO_OWNER);
	canal_ct_free(ct);
}

/* A superpacket counts as the packets that it stands for. */
static void test_counts(void)
{
	struct canal_ct *ct = new_table(8);
	struct packet p = udp(1, 2, 10, 20), q = back(&p);
	struct ct_entry *entry = open_flow(ct, &p, 0);

	q.vnet.segments = 45;
	q.total = 64000;
	ct_lookup(ct, (struct packet *const[]){ &q }, 1);
	CHECK_EQ(ct_update(ct, q.ct, &q, 7), CANAL_DROP_NONE);
	CHECK_EQ(entry->packets[0], 1);
	CHECK_EQ(entry->packets[1], 45);
	CHECK_EQ(entry->bytes[1], 64000);
	CHECK_EQ(entry->seen_ms, 7);
	CHECK_EQ(entry->state, CANAL_CT_REPLIED);
	canal_ct_free(ct);
}

static void test_related(void)
{
	struct canal_ct *ct = new_table(8);
	struct packet p = udp(1, 2, 10, 20), q = back(&p), other = udp(1, 3, 10, 20);
	struct ct_entry *entry = open_flow(ct, &p, 0);
	bool is_reply;

	CHECK(ct_find_related(ct, &p.flow, &is_reply) == entry);
	CHECK(!is_reply);
	CHECK(ct_find_related(ct, &q.flow, &is_reply) == entry);
	CHECK(is_reply);
	CHECK(ct_find_related(ct, &other.flow, &is_reply) == NULL);
	p.flow.flags = CANAL_FLOW_LATER_FRAG;
	CHECK(ct_find_related(ct, &p.flow, &is_reply) == NULL);
	canal_ct_sweep(ct, 30000, 0);
	CHECK(ct_find_related(ct, &q.flow, &is_reply) == NULL);
	canal_ct_free(ct);
}

static void test_remove(void)
{
	struct canal_ct *ct = new_table(16);
	struct ct_entry *entries[6];
	struct packet p[6];
	enum canal_drop drop;

	for (uint8_t i = 0; i < 6; i++) {
		p[i] = udp(1, 2, i, 20);
		p[i].in = CANAL_TARGET_PORT | (i == 0 ? 7u : 1u);
		p[i].out = i == 1 ? CANAL_TARGET_PORT | 7 : CANAL_TARGET_VTEP | 7;
		entries[i] = ct_insert(ct, &p[i], i == 2 ? 7 : CT_NO_OWNER, 0, &drop);
		CHECK(entries[i] != NULL);
	}
	entries[3]->in[1] = CANAL_TARGET_PORT | CANAL_TARGET_LOCAL | 7;
	CHECK_EQ(ct_remove_port(ct, 7), 4);      /* it came in there, goes out there, belongs there, its replies come in there */
	CHECK_EQ(canal_ct_count(ct), 2);
	CHECK_EQ(ct_remove_port(ct, 7), 0);
	ct_remove(ct, entries[4]);
	for (uint32_t i = 0; i < 6; i++) {
		ct_lookup(ct, (struct packet *const[]){ &p[i] }, 1);
		CHECK(p[i].ct == (i == 5 ? entries[5] : NULL));
	}
	CHECK_EQ(canal_ct_count(ct), 1);
	canal_ct_free(ct);
}

/* Buckets that overflow forget it when their entries go. */
static void test_overflow_is_forgotten(void)
{
	enum { N = 51 };
	struct canal_ct *ct = new_table(N);
	struct ct_entry *entries[N];
	uint32_t overflows = 0;
	uint64_t seed = 9;

	for (uint32_t round = 0; round < 100; round++) {
		for (uint32_t i = 0; i < N; i++) {
			struct packet p = udp(1, 2, (uint16_t)random_u64(&seed), (uint16_t)(round * N + i));

			entries[i] = open_flow(ct, &p, 0);
		}
		for (uint32_t i = 0; i <= ct->bucket_mask; i++)
			overflows += ct->buckets[i].overflow;
		for (uint32_t i = 0; i < N; i++)
			ct_remove(ct, entries[i]);
		for (uint32_t i = 0; i <= ct->bucket_mask; i++)
			CHECK_EQ(ct->buckets[i].overflow, 0);
	}
	CHECK(overflows > 0);
	canal_ct_free(ct);
}

int main(void)
{
	test_batch();
	test_hash_is_keyed();
	test_insert_twice();
	test_counts();
	test_related();
	test_remove();
	test_overflow_is_forgotten();
	return 0;
}
