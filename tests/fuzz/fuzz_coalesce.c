/*
 * fuzz_coalesce.c - any bytes as a batch of packets, joined into superpackets and cut again.
 *
 * Input:      rows of [size, 2 bytes][packet].
 * Invariants: every packet that parses comes out again, in the number of wire packets that went in.
 */
/* sources: coalesce.c gso.c parse.c vnet.c csum.c */
#include <stdlib.h>
#include <string.h>

#include "fix.h"
#include "packet.h"

enum { OUT_BYTES = 1 << 18 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t rows(uint8_t *data, size_t size, struct canal_span *spans)
{
	size_t n = 0, at = 0;

	while (n < CANAL_BATCH_MAX && at + 2 <= size) {
		uint32_t want = load_be16(data + at) & 0x7ff;

		at += 2;
		spans[n] = (struct canal_span){ .offset = (uint32_t)at, .size = want < size - at ? want : (uint32_t)(size - at) };
		fix_ipv4(data + at, spans[n].size);
		at += spans[n++].size;
	}
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct canal_span spans[CANAL_BATCH_MAX] = { 0 }, joined[CANAL_BATCH_MAX];
	struct canal_vnet vnets[CANAL_BATCH_MAX];
	struct canal_flow flows[CANAL_BATCH_MAX];
	static uint8_t out[OUT_BYTES];
	uint8_t *bytes = malloc(size ? size : 1);
	size_t n = rows(memcpy(bytes, data, size), size, spans);
	uint32_t valid = 0, packets = 0;
	int count = canal_coalesce(bytes, spans, n, 0, out, OUT_BYTES, joined, vnets, CANAL_BATCH_MAX);

	canal_parse(bytes, spans, n, flows);
	for (size_t i = 0; i < n; i++)
		valid += flows[i].drop == CANAL_DROP_NONE;
	for (int i = 0; i < count; i++)
		packets += vnets[i].segments;
	if (count >= 0 && packets != valid && packets != n)
		abort();
	free(bytes);
	return 0;
}
