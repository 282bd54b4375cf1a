/*
 * fuzz_fragment.c - any sequence of fragments through the table, and any packet cut and put together again.
 *
 * Structure:  input[0] = what follows: even, 5 bytes a fragment; odd, MTU (2 bytes) and a packet to cut.
 *
 *             fragment   | time | id, source | more, allow | offset / 8 | payload / 8 |
 *
 * Invariants: within a datagram no byte is let through twice; a later fragment passes only with the verdict that its datagram's first
 *             one got, within 30 s of it; the table never holds more than its size. Cut packets fit, and make the whole again.
 * Run:        clang-19 -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -I native -o /tmp/fuzz_fragment \
 *                 tests/fuzz/fuzz_fragment.c native/{fragment,parse,csum}.c && /tmp/fuzz_fragment -max_total_time=60
 */
/* sources: fragment.c parse.c csum.c */
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "fragment.h"
#include "parse.h"

enum { TABLE_MAX = 6, IDS = 8, SOURCES = 2, STEP_SIZE = 5, LIFE_MS = 30000, UNITS = 512, HEADROOM = 16, FRAGMENTS_MAX = 9000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the receiver has of one datagram: a flag per 8 bytes, since its last first fragment. */
struct receiver {
	uint8_t got[UNITS];
	uint64_t first_ms;
	uint32_t verdict;
};

static void require(bool condition)
{
	if (!condition)
		abort();
}

static void deliver(struct receiver *r, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++) {
		require(!r->got[i]);
		r->got[i] = 1;
	}
}

static void step(struct frag_table *t, struct receiver receivers[IDS][SOURCES], const uint8_t *s, uint64_t now, uint32_t verdict_id)
{
	uint32_t id = s[1] % IDS, source = s[1] / IDS % SOURCES, units = 1 + s[4] % 8;
	bool more = s[2] & 1 || s[3] == 0, allow = s[2] & 2;
	struct receiver *r = &receivers[id][source];
	uint8_t ip[20] = { 0x45 };
	struct packet p = { .data = ip, .size = 20 + units * 8, .total = 20 + units * 8, .in = source };
	struct frag_verdict verdict, mine = { .out = verdict_id };

	p.flow = (struct canal_flow){ .family = 4, .proto = 17, .frag_id = id, .total_size = p.size, .l4_offset = 20,
		                      .frag_offset = (uint16_t)(s[3] * 8) };
	p.flow.flags = (uint8_t)(CANAL_FLOW_FRAG | (more ? CANAL_FLOW_MORE_FRAGS : 0) | (s[3] ? CANAL_FLOW_LATER_FRAG : 0));
	enum canal_drop drop = frag_check(t, &p, now, &verdict);
	require(frag_count(t) <= TABLE_MAX);
	if (drop != CANAL_DROP_NONE)
		return;
	if (s[3] == 0) {
		memset(r, 0, sizeof(*r));
		r->first_ms = now;
		if (allow) {
			frag_remember(t, &p, &mine);
			r->verdict = verdict_id;
		}
	} else {
		require(r->verdict && verdict.out == r->verdict && now < r->first_ms + LIFE_MS);
	}
	if (s[3] || allow)
		deliver(r, s[3], s[3] + units);
}

static void run_table(const uint8_t *steps, size_t size)
{
	static const uint64_t seed[2] = { 1, 2 };
	struct receiver(*receivers)[SOURCES] = calloc(IDS, sizeof(*receivers));
	struct frag_table *t = frag_new(TABLE_MAX, seed);
	uint64_t now = 1;

	require(t && receivers);
	for (uint32_t i = 1; size >= STEP_SIZE; i++, steps += STEP_SIZE, size -= STEP_SIZE) {
		now += steps[0] < 250 ? steps[0] : steps[0] * 50u;
		step(t, receivers, steps, now, i);
	}
	frag_sweep(t, now + LIFE_MS, TABLE_MAX);
	require(frag_count(t) == 0);
	frag_free(t);
	free(receivers);
}

static void check_cut(const uint8_t *packet, const struct canal_flow *whole, const uint8_t *out, const struct canal_span *spans, uint32_t n)
{
	uint32_t at = whole->l4_offset, end = whole->total_size;

	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *ip = out + spans[i].offset;
		uint32_t header_size = (ip[0] & 15u) * 4, payload = spans[i].size - header_size, field = load_be16(ip + 6);
		bool last = i == n - 1;

		require(load_be16(ip + 2) == spans[i].size && header_size >= 20 && header_size <= whole->l4_offset);
		require(csum_fold(csum_add(ip, header_size, 0)) == 0xffff);
		require((field & 0x1fff) * 8 == whole->frag_offset + at - whole->l4_offset);
		require(((field & 0x2000) != 0) == (!last || whole->flags & CANAL_FLOW_MORE_FRAGS));
		require((last || payload % 8 == 0) && payload <= end - at);
		require(memcmp(ip + header_size, packet + at, payload) == 0);
		at += payload;
	}
	require(at == end);
}

static void run_split(const uint8_t *bytes, size_t size)
{
	static struct canal_span spans[FRAGMENTS_MAX];
	uint32_t mtu = load_be16(bytes);
	struct packet p = { .size = (uint32_t)size - 2, .total = (uint32_t)size - 2 };
	size_t out_size = size * 12 + 4096;
	uint8_t *packet = malloc(p.size), *out = malloc(out_size);

	require(packet && out);
	memcpy(packet, bytes + 2, p.size);
	p.data = packet;
	packet[0] = (uint8_t)(0x40 | (packet[0] & 15));
	if ((packet[0] & 15u) * 4 >= 20 && (packet[0] & 15u) * 4 <= p.size)
		csum_ipv4(packet, (packet[0] & 15u) * 4);
	if (parse_packet(packet, p.size, &p.flow) == CANAL_DROP_NONE) {
		p.flow.l4_offset = (uint16_t)((packet[0] & 15) * 4);
		uint32_t n = frag_split(&p, mtu, HEADROOM, out, out_size, spans, FRAGMENTS_MAX);
		for (uint32_t i = 0; i < n; i++)
			require(spans[i].size <= mtu && spans[i].offset >= HEADROOM && spans[i].offset + spans[i].size <= out_size);
		if (n)
			check_cut(packet, &p.flow, out, spans, n);
	}
	free(packet);
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 0 && data[0] % 2 == 0)
		run_table(data + 1, size - 1);
	else if (size > 23)
		run_split(data + 1, size - 1);
	return 0;
}
