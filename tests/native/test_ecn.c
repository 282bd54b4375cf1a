/* test_ecn.c - ecn_decap for each line "OUTER_TOS HEX" on stdin; answers "drop hex", the packet as it is afterwards. */
#include "check.h"
#include "ecn.h"
#include "parse.h"

int main(void)
{
	static char line[2 * CANAL_PACKET_MAX + 100];
	static uint8_t bytes[CANAL_PACKET_MAX];
	unsigned int outer;
	int at = 0;

	while (fgets(line, sizeof(line), stdin)) {
		CHECK_EQ(sscanf(line, "%u %n", &outer, &at), 1);
		uint32_t size = (uint32_t)hex_bytes(line + at, bytes, sizeof(bytes));
		struct packet p = { .data = exact_copy(bytes, size), .size = size, .total = size };
		struct canal_flow again;

		CHECK_EQ(parse_packet(p.data, size, &p.flow), CANAL_DROP_NONE);
		printf("%d ", ecn_decap(&p, (uint8_t)outer));
		print_hex("", p.data, size);
		CHECK_EQ(parse_packet(p.data, size, &again), CANAL_DROP_NONE);
		CHECK_BYTES(&again, &p.flow, sizeof(again));
		CHECK_EQ(ecn_encap(p.flow.tos), p.flow.tos & 3);
		free(p.data);
	}
	return 0;
}
