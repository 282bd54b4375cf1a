/*
 * test_parse.c - parse.c over blocks of exactly the packet's size, so that ASan sees every byte read beyond it.
 *
 * Structure:  stdin: one packet a line, in hex.
 *             prefixes     each packet cut to every shorter size: prints one drop reason a size, 0..whole, on a line
 *             mutate SEED  each packet with random bytes changed, many times: invariants only
 *             quoted       each packet taken as an ICMP error: prints what the quoted one's flow is, or "none"
 */
#include "check.h"
#include "parse.h"

enum { LINE_MAX_BYTES = 2 * CANAL_PACKET_MAX + 2, MUTATIONS = 300 };

static void check_flow(const struct canal_flow *flow, uint32_t size)
{
	CHECK(flow->drop < CANAL_DROPS);
	if (flow->drop != CANAL_DROP_NONE)
		return;
	CHECK(flow->family == 4 || flow->family == 6);
	CHECK(flow->total_size <= size);
	CHECK((uint32_t)flow->l4_offset + flow->l4_size <= flow->total_size);
	CHECK(flow->l4_offset >= (flow->family == 4 ? 20 : 40));
	if (flow->flags & CANAL_FLOW_LATER_FRAG)
		CHECK(flow->sport_be == 0 && flow->dport_be == 0 && flow->l4_size == 0);
}

static uint16_t parse_exact(const uint8_t *bytes, uint32_t size)
{
	struct canal_flow flow, quoted;
	uint8_t *packet = exact_copy(bytes, size);

	CHECK_EQ(parse_packet(packet, size, &flow), flow.drop);
	check_flow(&flow, size);
	if (flow.drop == CANAL_DROP_NONE && parse_quoted(packet, &flow, &quoted)) {
		uint32_t start = (uint32_t)flow.l4_offset + flow.l4_size;
		CHECK(flow.flags & CANAL_FLOW_ICMP_ERROR);
		check_flow(&quoted, flow.total_size - start);
	}
	free(packet);
	return flow.drop;
}

static void prefixes(const uint8_t *bytes, uint32_t size)
{
	for (uint32_t n = 0; n <= size; n++)
		printf("%u%c", parse_exact(bytes, n), n == size ? '\n' : ' ');
}

static void mutate(const uint8_t *bytes, uint32_t size, uint64_t *seed)
{
	for (uint32_t i = 0; i < MUTATIONS && size > 0; i++) {
		uint8_t *packet = exact_copy(bytes, size);
		uint32_t changes = 1 + random_below(seed, 4);
		while (changes-- > 0)
			packet[random_below(seed, size < 100 ? size : 100)] = (uint8_t)random_u64(seed);
		if (size >= 20 && packet[0] == 0x45) {              /* else only the checksum is ever tested */
			uint32_t sum = 0;
			packet[10] = packet[11] = 0;
			for (uint32_t at = 0; at < 20; at += 2)
				sum += load_be16(packet + at);
			sum = (sum & 0xffff) + (sum >> 16);
			store_be16(packet + 10, (uint16_t)~(sum + (sum >> 16)));
		}
		parse_exact(packet, 1 + random_below(seed, size));
		parse_exact(packet, size);
		free(packet);
	}
}

static void quoted(const uint8_t *bytes, uint32_t size)
{
	struct canal_flow flow, inner;
	uint8_t *packet = exact_copy(bytes, size);

	CHECK_EQ(parse_packet(packet, size, &flow), CANAL_DROP_NONE);
	if (parse_quoted(packet, &flow, &inner)) {
		print_hex("", inner.src, 16);
		print_hex("", inner.dst, 16);
		printf("%u %u %u %u %u\n", inner.family, inner.proto, load_be16((const uint8_t *)&inner.sport_be),
		       load_be16((const uint8_t *)&inner.dport_be), inner.tcp_flags);
	} else {
		printf("none\nnone\nnone\n");
	}
	free(packet);
}

int main(int argc, char **argv)
{
	static char line[LINE_MAX_BYTES];
	static uint8_t bytes[CANAL_PACKET_MAX];
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;

	CHECK(argc > 1);
	while (fgets(line, sizeof(line), stdin)) {
		uint32_t size = (uint32_t)hex_bytes(line, bytes, sizeof(bytes));
		if (strcmp(argv[1], "prefixes") == 0)
			prefixes(bytes, size);
		else if (strcmp(argv[1], "mutate") == 0)
			mutate(bytes, size, &seed);
		else
			quoted(bytes, size);
	}
	return 0;
}
