/*
 * test_icmp.c - icmp.c driven by lines on stdin; one answer a line.
 *
 * Structure:  error KIND MTU ROUTER HEX    -> the error in hex, or "none"
 *             allow PER_S NOW NOW ...      -> one 0 or 1 a time, by one limiter
 *             flood PER_S START MS CALLS   -> how many of CALLS a millisecond are allowed from START to START + MS
 */
#include "check.h"
#include "icmp.h"
#include "parse.h"

enum { LINE_SIZE = 2 * CANAL_PACKET_MAX + 100 };

static void error(enum icmp_kind kind, uint32_t mtu, const char *router_hex, const char *hex)
{
	static uint8_t bytes[CANAL_PACKET_MAX];
	uint8_t router[16];
	uint8_t *out = malloc(ICMP_ERROR_MAX);
	uint32_t size = (uint32_t)hex_bytes(hex, bytes, sizeof(bytes));
	struct packet p = { .data = exact_copy(bytes, size), .size = size, .total = size };

	CHECK_EQ(hex_bytes(router_hex, router, sizeof(router)), sizeof(router));
	CHECK_EQ(parse_packet(p.data, size, &p.flow), CANAL_DROP_NONE);
	memset(out, 0xa5, ICMP_ERROR_MAX);
	uint32_t n = icmp_error(&p, kind, mtu, router, out);
	if (n)
		print_hex("", out, n);
	else
		printf("none\n");
	free(p.data);
	free(out);
}

static void allow(uint32_t per_s, char *times)
{
	struct icmp_limiter limiter = { .per_s = per_s };

	for (char *word = strtok(times, " \n"); word; word = strtok(NULL, " \n"))
		printf("%d", icmp_allow(&limiter, strtoull(word, NULL, 10)));
	printf("\n");
}

static void flood(uint32_t per_s, uint64_t start, uint64_t duration_ms, uint32_t calls)
{
	struct icmp_limiter limiter = { .per_s = per_s };
	uint64_t allowed = 0;

	for (uint64_t ms = 0; ms <= duration_ms; ms++)
		for (uint32_t i = 0; i < calls; i++)
			allowed += icmp_allow(&limiter, start + ms);
	printf("%llu\n", (unsigned long long)allowed);
}

int main(void)
{
	static char line[LINE_SIZE];
	char router[33];
	unsigned int kind, mtu;
	unsigned long long start;
	int at = 0;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "error %u %u %32s %n", &kind, &mtu, router, &at) == 3)
			error((enum icmp_kind)kind, mtu, router, line + at);
		else if (sscanf(line, "allow %u %n", &kind, &at) == 1)
			allow(kind, line + at);
		else if (sscanf(line, "flood %u %llu %u %d", &kind, &start, &mtu, &at) == 4)
			flood(kind, start, mtu, (uint32_t)at);
		else
			CHECK(!"a line that is no command");
	}
	return 0;
}
