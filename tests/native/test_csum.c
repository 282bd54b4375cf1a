/* test_csum.c - sums against a byte-by-byte twin, every size and alignment; then sums of random bytes in hex for an oracle in Python. */
#include "check.h"

#include "csum.h"

static uint64_t slow_sum(const uint8_t *bytes, size_t size)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < size; i++)
		sum += i & 1 ? bytes[i] : (uint64_t)bytes[i] << 8;
	return sum;
}

/* In a block of exactly that size, so that ASan sees a byte too many. */
static void check_size(uint64_t *seed, size_t size, size_t align, int fill)
{
	uint8_t *block = malloc(align + size + 1), *bytes = block + align + 1;

	CHECK(block);
	if (fill < 0)
		random_bytes(seed, bytes, size);
	else if (size)
		memset(bytes, fill, size);
	CHECK_EQ(csum_fold(csum_add(bytes, size, 0)), csum_fold(slow_sum(bytes, size)));
	CHECK_EQ(csum_fold(csum_add(bytes, size, 0xffff1234)), csum_fold(slow_sum(bytes, size) + 0xffff1234));
	free(block);
}

/* RFC 1624: changing a word and its checksum is summing again. */
static void check_update(uint64_t *seed)
{
	uint8_t bytes[20];
	uint16_t before, after, check;

	random_bytes(seed, bytes, sizeof(bytes));
	csum_ipv4(bytes, sizeof(bytes));
	CHECK_EQ(csum_fold(slow_sum(bytes, sizeof(bytes))), 0xffff);
	before = load_be16(bytes + 8);
	after = (uint16_t)random_u64(seed);
	check = csum_update16(load_be16(bytes + 10), before, after);
	store_be16(bytes + 8, after);
	store_be16(bytes + 10, check);
	CHECK_EQ(csum_fold(slow_sum(bytes, sizeof(bytes))), 0xffff);
}

/* The same for an IPv4 address and its mapped form. */
static void check_pseudo(uint64_t *seed)
{
	struct canal_flow flow = { .proto = 17, .family = 4, .src = { [10] = 0xff, 0xff }, .dst = { [10] = 0xff, 0xff } };
	uint8_t header[12] = { [9] = 17 };
	uint32_t size = random_below(seed, 65536);

	random_bytes(seed, flow.src + 12, 4);
	random_bytes(seed, flow.dst + 12, 4);
	memcpy(header, flow.src + 12, 4);
	memcpy(header + 4, flow.dst + 12, 4);
	store_be16(header + 10, size);
	CHECK_EQ(csum_fold(csum_pseudo(&flow, size)), csum_fold(slow_sum(header, sizeof(header))));
}

int main(int argc, char **argv)
{
	uint64_t seed = strtoull(argc > 1 ? argv[1] : "1", NULL, 0);
	uint8_t bytes[2000];

	for (size_t size = 0; size < 400; size++)
		for (size_t align = 0; align < 8; align++)
			check_size(&seed, size, align, -1);
	for (int i = 0; i < 300; i++)
		check_size(&seed, random_below(&seed, 70000), random_below(&seed, 64), i % 3 == 0 ? 0xff : i % 3 == 1 ? 0 : -1);
	check_size(&seed, 1 << 22, 1, 0xff);
	for (int i = 0; i < 10000; i++) {
		check_update(&seed);
		check_pseudo(&seed);
	}
	for (int i = 0; i < 50; i++) {
		size_t size = random_below(&seed, sizeof(bytes));
		char label[16];

		random_bytes(&seed, bytes, size);
		snprintf(label, sizeof(label), "%u", csum_fold(csum_add(bytes, size, 0)));
		print_hex(label, bytes, size);
	}
	return 0;
}
