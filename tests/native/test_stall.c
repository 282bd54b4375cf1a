/* test_stall.c - what counts as sent again. */
#include "check.h"
#include "stall.h"

enum { FLOW = 77, SEGMENT = 1000 };

static struct stall s;

/* A segment at `at` ms; the first one of each row is long after whatever told before. */
static bool again(uint32_t seq, uint64_t at) { return stall_again(&s, FLOW, seq, SEGMENT, at); }

static void only_what_does_not_go_beyond(void)
{
	s = (struct stall){ 0 };
	for (uint32_t i = 0; i < 1000; i++)
		CHECK(!again(i * SEGMENT, 1000));
	CHECK(again(999 * SEGMENT, 1200));
	CHECK(again(500 * SEGMENT, 1600));
	CHECK(!again(1000 * SEGMENT, 2000));
	CHECK(again(1000 * SEGMENT, 2400));
}

static void also_where_numbers_wrap(void)
{
	s = (struct stall){ 0 };
	CHECK(!again(0xfffffe00u, 1000));
	CHECK(!again(0xfffffe00u + SEGMENT, 1001));
	CHECK(again(0xfffffe00u, 1200));
}

static void a_new_connection_with_the_same_ports(void)
{
	s = (struct stall){ 0 };
	CHECK(!again(0x40000000u, 1000));
	CHECK(!again(0x30000000u, 2000));
	CHECK(!again(0x30000000u + SEGMENT, 2001));
}

static void at_most_one_in_a_while(void)
{
	uint32_t told = 0;

	s = (struct stall){ 0 };
	for (uint64_t at = 1000; at < 2000; at++)
		told += again(0, at);
	CHECK(told >= 10 && told <= 1000 / STALL_GAP_MS);
}

static void flows_put_each_other_out(void)
{
	s = (struct stall){ 0 };
	CHECK(!again(0, 1000));
	CHECK(!stall_again(&s, FLOW + STALL_SLOTS, 0, SEGMENT, 1001));
	CHECK(!again(0, 1200));
	CHECK(again(0, 1400));
}

int main(void)
{
	only_what_does_not_go_beyond();
	also_where_numbers_wrap();
	a_new_connection_with_the_same_ports();
	at_most_one_in_a_while();
	flows_put_each_other_out();
	return 0;
}
