/*
 * test_fragment.c - fragment.c driven by lines on stdin; one answer a line.
 *
 * Structure:  new MAX                    a fresh table                                        -> nothing
 *             packet NOW IN ALLOW HEX    parse, frag_check, and frag_remember(out = NOW) if it is a first fragment, passed and ALLOW
 *                                                                                             -> drop out count
 *             sweep NOW N                                                                     -> freed count
 *             split MTU HEADROOM HEX                                                          -> fragments in hex, or "none"
 */
#include "check.h"
#include "fragment.h"
#include "parse.h"

enum { LINE_SIZE = 2 * CANAL_PACKET_MAX + 100, FRAGMENTS = 2000, OUT_SIZE = 1 << 20 };

static const uint64_t seed[2] = { 0x0123456789abcdef, 0xfedcba9876543210 };

/* p->data is a block of exactly the packet's size. */
static struct packet parsed(const char *hex, uint32_t in)
{
	static uint8_t bytes[CANAL_PACKET_MAX];
	uint32_t size = (uint32_t)hex_bytes(hex, bytes, sizeof(bytes));
	struct packet p = { .data = exact_copy(bytes, size), .size = size, .total = size, .in = in };

	CHECK_EQ(parse_packet(p.data, size, &p.flow), CANAL_DROP_NONE);
	return p;
}

static void packet(struct frag_table *t, uint64_t now, uint32_t in, bool allow, const char *hex)
{
	struct packet p = parsed(hex, in);
	struct frag_verdict verdict, remembered = { .out = (uint32_t)now, .generation = now };
	enum canal_drop drop = frag_check(t, &p, now, &verdict);

	if (drop == CANAL_DROP_NONE && !(p.flow.flags & CANAL_FLOW_LATER_FRAG) && allow)
		frag_remember(t, &p, &remembered);
	CHECK_EQ(verdict.out, verdict.generation);
	printf("%d %u %u\n", drop, verdict.out, frag_count(t));
	free(p.data);
}

static void split(uint32_t mtu, uint32_t headroom, const char *hex)
{
	static struct canal_span spans[FRAGMENTS];
	struct packet p = parsed(hex, 0);
	uint8_t *out = malloc(OUT_SIZE);
	uint32_t n = frag_split(&p, mtu, headroom, out, OUT_SIZE, spans, FRAGMENTS);
	size_t end = 0;

	for (uint32_t i = 0; i < n; i++) {
		CHECK_EQ(spans[i].offset, end + headroom);
		end = spans[i].offset + spans[i].size;
		print_hex("", out + spans[i].offset, spans[i].size);
	}
	printf("%s\n", n ? "end" : "none");
	if (n) {                                       /* exactly what it takes is enough, and one less of anything is too little */
		uint8_t *exact = malloc(end);
		CHECK_EQ(frag_split(&p, mtu, headroom, exact, end, spans, n), n);
		CHECK_EQ(frag_split(&p, mtu, headroom, exact, end - 1, spans, n), 0);
		CHECK_EQ(frag_split(&p, mtu, headroom, exact, end, spans, n - 1), 0);
		free(exact);
	}
	free(out);
	free(p.data);
}

int main(void)
{
	static char line[LINE_SIZE];
	struct frag_table *t = frag_new(0, seed);
	unsigned long long now;
	unsigned int a, b;
	int at = 0;

	frag_free(NULL);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "new %u", &a) == 1) {
			frag_free(t);
			CHECK(t = frag_new(a, seed));
		} else if (sscanf(line, "packet %llu %u %u %n", &now, &a, &b, &at) == 3) {
			packet(t, now, a, b, line + at);
		} else if (sscanf(line, "sweep %llu %u", &now, &a) == 2) {
			uint32_t freed = frag_sweep(t, now, a);
			printf("%u %u\n", freed, frag_count(t));
		} else if (sscanf(line, "split %u %u %n", &a, &b, &at) == 2) {
			split(a, b, line + at);
		} else {
			CHECK(!"a line that is no command");
		}
	}
	frag_free(t);
	return 0;
}
