/*
 * fuzz_policy.c - any program asked about any packet, beside a walk over its rows; and the reset that answers the packet.
 *
 * Structure:  input[0] = rows, then ROW_SIZE bytes a row, then an IP packet:
 *
 *             row    | action | classes of source << 4 | dport | dport's end | sport's end | proto | next |
 *             class  first bits of an address, for both families: 0..3
 * Invariants: a program is refused exactly when one of its rows is out of its domain, and that row is named; else the verdict, the rule and
 *             the log are those of the walk. A reset is a packet that parses, goes back, answers no reset, and has good checksums.
 */
/* sources: policy.c policy_build.c classify.c classify_build.c classify_rules.c classify_set.c fib.c parse.c csum.c reset.c */
#include <netinet/in.h>
#include <stdlib.h>

#include "csum.h"
#include "fix.h"
#include "parse.h"
#include "policy.h"
#include "reset.h"

enum { ROW_SIZE = 7, ROWS_MAX = 200, CLASSES = 4, RST = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	struct canal_row rows[ROWS_MAX];
	uint64_t vectors[2 * CLASSES * (ROWS_MAX / 64 + 1)];   /* classes as sources, then as destinations */
	size_t n;
};

static void require(bool condition)
{
	if (!condition)
		abort();
}

static size_t words(const struct input *in) { return (in->n + 63) / 64; }

static bool is_in(const struct input *in, uint32_t vector, size_t row)
{
	return in->vectors[vector * words(in) + row / 64] >> row % 64 & 1;
}

static void read_rows(struct input *in, const uint8_t *data)
{
	for (size_t i = 0; i < in->n; i++) {
		const uint8_t *s = data + i * ROW_SIZE;

		in->rows[i] = (struct canal_row){ .action = s[0] % 6, .rule = (uint32_t)i + 1, .dport_lo = s[2], .dport_hi = (uint16_t)(s[3] << (s[0] >> 5)),
		                                  .sport_hi = s[4] & 1 ? 0xffff : s[4], .proto_lo = s[5] & 0x80 ? s[5] & 0x7f : 0,
		                                  .proto_hi = s[5] & 0x80 ? s[5] & 0x7f : 0xff, .next = s[6] };
		for (uint32_t class = 0; class < CLASSES; class++) {
			in->vectors[class * words(in) + i / 64] |= (uint64_t)(s[1] >> class & 1) << i % 64;
			in->vectors[(CLASSES + class) * words(in) + i / 64] |= (uint64_t)(s[1] >> 4 >> class & 1) << i % 64;
		}
	}
}

static size_t first_wrong(const struct input *in)
{
	size_t i = 0;

	for (; i < in->n; i++) {
		const struct canal_row *row = &in->rows[i];

		if (row->dport_lo > row->dport_hi || row->action > CANAL_ACTION_LOG ||
		    (row->action == CANAL_ACTION_PASS && (row->next <= i || row->next > in->n)))
			break;
	}
	return i;
}

static uint32_t class_of(const uint8_t addr[16], uint8_t family)
{
	return addr[family == 4 ? 12 : 0] >> 6;
}

static void walk(const struct input *in, const struct canal_flow *flow, struct canal_judgement *found)
{
	bool icmp = flow->proto == IPPROTO_ICMP || flow->proto == IPPROTO_ICMPV6;
	uint32_t sport = icmp ? 0 : load_be16((const uint8_t *)&flow->sport_be);
	uint32_t dport = icmp ? (uint32_t)(flow->icmp_type << 8 | flow->icmp_code) : load_be16((const uint8_t *)&flow->dport_be);
	uint32_t src = class_of(flow->src, flow->family), dst = CLASSES + class_of(flow->dst, flow->family);

	for (size_t at = 0; at < in->n; at++) {
		const struct canal_row *row = &in->rows[at];

		if (!is_in(in, src, at) || !is_in(in, dst, at) || sport > row->sport_hi || dport < row->dport_lo || dport > row->dport_hi ||
		    flow->proto < row->proto_lo || flow->proto > row->proto_hi)
			continue;
		if (row->action == CANAL_ACTION_PASS) {
			at = row->next - 1;
		} else if (row->action == CANAL_ACTION_LOG) {
			found->log[CANAL_EGRESS] = row->rule;
		} else {
			found->rule[CANAL_EGRESS] = row->rule;
			found->verdict = row->action == CANAL_ACTION_ALLOW;
			found->reject = row->action == CANAL_ACTION_REJECT;
			return;
		}
	}
}

static void judge_both(const struct input *in, struct canal_program *program, const struct canal_flow *flow)
{
	const struct canal_way way = { .source_pod = 5, .destination_pod = CANAL_NO_POD };
	const struct canal_endpoint endpoint = { .port = 5, .program = { 0, CANAL_PROGRAM_NONE } };
	struct canal_judgement found, expected = { 0 };
	struct canal_fib_entry prefixes[2 * CLASSES];
	const uint32_t flags[CLASSES] = { 0 };
	struct canal_classes *classes;
	struct canal_policy *policy;
	struct canal_fault fault;

	for (uint32_t i = 0; i < CLASSES; i++) {
		prefixes[i] = (struct canal_fib_entry){ .prefix = { [10] = 0xff, 0xff, (uint8_t)(i << 6) }, .family = 4, .plen = 2, .target = i };
		prefixes[CLASSES + i] = (struct canal_fib_entry){ .prefix = { (uint8_t)(i << 6) }, .family = 6, .plen = 2, .target = i };
	}
	require(canal_classes_build(NULL, NULL, 0, prefixes, 2 * CLASSES, flags, CLASSES, &classes, &fault) == CANAL_OK);
	require(canal_policy_build(classes, &program, 1, &endpoint, 1, CANAL_ALLOW, &policy, &fault) == CANAL_OK);
	canal_classes_release(classes);
	policy_judge(policy, flow, &way, &found);
	canal_policy_release(policy);
	walk(in, flow, &expected);
	require(found.verdict == expected.verdict && found.reject == expected.reject);
	require(found.rule[CANAL_EGRESS] == expected.rule[CANAL_EGRESS] && found.log[CANAL_EGRESS] == expected.log[CANAL_EGRESS]);
}

static void try_program(const struct input *in, const struct canal_flow *flow)
{
	static const uint32_t sources[CLASSES] = { 0, 1, 2, 3 }, destinations[CLASSES] = { 4, 5, 6, 7 };
	struct canal_program *program;
	struct canal_fault fault;
	int rc = canal_program_build(in->rows, in->n, in->vectors, 2 * CLASSES, sources, destinations, CLASSES, &program, &fault);

	if (first_wrong(in) < in->n) {
		require(rc == CANAL_EINVAL && !program && fault.table == CANAL_TABLE_ROW && fault.row == first_wrong(in));
		return;
	}
	require(rc == CANAL_OK);
	if (flow->drop == CANAL_DROP_NONE)
		judge_both(in, program, flow);
	canal_program_release(program);
}

static void try_reset(const struct packet *p)
{
	uint8_t *out = malloc(RESET_MAX);
	uint32_t size = tcp_reset(p, out);
	struct canal_flow back;

	if (size) {
		uint32_t l4_size;

		require(!(p->flow.tcp_flags & RST) && !(p->flow.flags & CANAL_FLOW_FRAG));
		require(parse_packet(out, size, &back) == CANAL_DROP_NONE && back.total_size == size && back.tcp_flags & RST);
		require(memcmp(back.src, p->flow.dst, 16) == 0 && memcmp(back.dst, p->flow.src, 16) == 0);
		require(back.sport_be == p->flow.dport_be && back.dport_be == p->flow.sport_be);
		l4_size = size - back.l4_offset;
		require(csum_fold(csum_add(out + back.l4_offset, l4_size, csum_pseudo(&back, l4_size))) == 0xffff);
	}
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input *in;
	struct packet p = { .vnet = { .segments = 1 } };

	if (size == 0)
		return 0;
	in = calloc(1, sizeof(*in));
	require(in != NULL);
	in->n = data[0] < ROWS_MAX ? data[0] : ROWS_MAX;
	if (in->n * ROW_SIZE > size - 1)
		in->n = (size - 1) / ROW_SIZE;
	read_rows(in, data + 1);
	p.size = p.total = (uint32_t)(size - 1 - in->n * ROW_SIZE);
	p.data = malloc(p.size ? p.size : 1);
	require(p.data != NULL);
	memcpy(p.data, data + size - p.size, p.size);
	fix_ipv4(p.data, p.size);
	p.flow.drop = (uint16_t)parse_packet(p.data, p.size, &p.flow);
	try_program(in, &p.flow);
	if (p.flow.drop == CANAL_DROP_NONE) {
		p.total = p.size = p.flow.total_size;
		try_reset(&p);
	}
	free(p.data);
	free(in);
	return 0;
}
