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

/* Peers have neighbouring addresses: they must not crowd in one corner of the index. */
static void test_neighbours_spread(uint8_t family)
{
	enum { PEERS = 5000, LONGEST = 64 };
	struct canal_vtep *vteps = calloc(PEERS, sizeof(*vteps));
	const struct canal_node node = { 0 };
	struct canal_tables *t;
	struct canal_fault fault;
	uint32_t run = 0;

	CHECK(vteps != NULL);
	for (uint32_t i = 0; i < PEERS; i++) {
		vteps[i] = (struct canal_vtep){ .port_be = 1, .mtu_bytes = 1450, .family = family };
		vteps[i].addr[0] = family == 4 ? 0 : 0xfd;
		vteps[i].addr[10] = vteps[i].addr[11] = family == 4 ? 0xff : 0;
		vteps[i].addr[12] = family == 4 ? 10 : 0;
		store_be16(vteps[i].addr + 14, i);
	}
	CHECK_EQ(canal_tables_build(&node, vteps, PEERS, NULL, 0, 1, &t, &fault), CANAL_OK);
	for (uint32_t i = 0; i <= t->vtep_mask; i++) {
		run = t->vtep_index[i] == 0xffffffff ? 0 : run + 1;
		CHECK(run < LONGEST);
	}
	canal_tables_free(t);
	free(vteps);
}

int main(void)
{
	struct canal_vtep vteps[ROWS];
	const struct canal_node node = { 0 };

	test_neighbours_spread(4);
	test_neighbours_spread(6);

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
