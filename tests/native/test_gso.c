/* test_gso.c - one packet as hex on stdin; says whether its checksum is right, whether it became partial, and both forms in hex. */
#include "check.h"

#include <stdbool.h>

#include "gso.h"
#include "parse.h"
#include "vnet.h"

static size_t read_hex(uint8_t *bytes, size_t max)
{
	unsigned int byte;
	size_t n = 0;

	while (n < max && scanf("%2x", &byte) == 1)
		bytes[n++] = (uint8_t)byte;
	return n;
}

static void print_packet(const struct packet *p)
{
	for (uint32_t i = 0; i < p->total; i++)
		printf("%02x", p->data[i]);
	printf("\n");
}

/* What vnet_push() writes, vnet_pull() accepts and reads as the same. */
static void check_vnet(const struct packet *p)
{
	uint8_t hdr[CANAL_VNET_HDR_SIZE];
	struct canal_vnet back;

	vnet_push(hdr, &p->vnet);
	CHECK_EQ(vnet_pull(hdr, &p->flow, &back), CANAL_DROP_NONE);
	CHECK_BYTES(&back, &p->vnet, sizeof(back));
}

int main(void)
{
	static uint8_t bytes[CANAL_PACKET_MAX];
	struct packet p = { .vnet = { .segments = 1 } };
	size_t size = read_hex(bytes, sizeof(bytes));

	p.data = exact_copy(bytes, size);
	CHECK_EQ(parse_packet(p.data, (uint32_t)size, &p.flow), CANAL_DROP_NONE);
	p.size = p.total = p.flow.total_size;
	p.vnet.hdr_size = (uint16_t)(p.flow.l4_offset + p.flow.l4_size);
	printf("%d\n", gso_verify_csum(&p));
	gso_make_partial(&p);
	CHECK(!p.vnet.needs_csum || gso_verify_csum(&p));
	check_vnet(&p);
	printf("%d\n", p.vnet.needs_csum);
	print_packet(&p);
	gso_finish_csum(&p);
	CHECK(!p.vnet.needs_csum);
	print_packet(&p);
	free(p.data);
	return 0;
}
