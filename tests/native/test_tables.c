/* test_tables.c - tables_find_vtep() against a linear scan, and builds of tables of every size. */
#include "check.h"
#include "tables.h"

enum { ROWS = 300, LOOKUPS = 2000 };

static uint32_t scan(const struct canal_vtep *vteps, uint32_t n, const uint8_t *addr, uint8_t encap)
{
	uint32_t row = 0;

	while (row < n && (vteps[row].encap != encap || memcmp(vteps[row].addr, addr, 16) != 0))
		row++;
	return row;
}

/* Few addresses, so that rows share them and lookups often miss. */
static void random_addr(uint64_t *seed, uint8_t addr[16], uint8_t *family)
{
	memset(addr, 0, 16);
	*family = random_below(seed, 2) ? 4 : 6;
	if (*family == 4)
		addr[10] = addr[11] = 0xff;
	else
		addr[0] = 0xfd;
	addr[15] = (uint8_t)random_u64(seed);
}

static uint32_t random_vteps(uint64_t *seed, struct canal_vtep *vteps, uint32_t n)
{
	uint32_t used = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct canal_vtep v = { .port_be = 1, .mtu_bytes = 1450, .encap = (uint8_t)random_below(seed, 2) };

		random_addr(seed, v.addr, &v.family);
		if (scan(vteps, used, v.addr, v.encap) == used)
			vteps[used++] = v;
	}
	return used;
}

int main(void)
{
	struct canal_vtep vteps[ROWS];
	const struct canal_node node = { 0 };

	for (uint64_t round = 0; round < 50; round++) {
		uint64_t seed = round;
		uint32_t n = random_vteps(&seed, vteps, random_below(&seed, ROWS));
		struct canal_tables *t;
		struct canal_fault fault;

		CHECK_EQ(canal_tables_build(&node, vteps, n, NULL, 0, round, &t, &fault), CANAL_OK);
		CHECK_EQ(t->generation, round);
		for (uint32_t i = 0; i < LOOKUPS; i++) {
			uint8_t addr[16], family, encap = (uint8_t)random_below(&seed, 2);

			random_addr(&seed, addr, &family);
			CHECK_EQ(tables_find_vtep(t, addr, encap), scan(vteps, n, addr, encap));
		}
		canal_tables_free(t);
	}
	return 0;
}
