/*
 * fuzz_pipeline.c - any bytes as frames of pods, host and peers, through the whole pipeline.
 *
 * Input:      the policy, then rows of [port 1][size 2][gso_size 2, tos 1 for the underlay][frame].
 *             Each input comes under a snapshot of its own, whose policy its first byte names: flows of earlier inputs are judged again.
 * Invariants: the conservation law holds after every input.
 */
/* sources: all */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fix.h"
#include "packet.h"

enum { FRAMES_MAX = 64, OUT_BYTES = 1 << 22, OUT_FRAMES = 4096, PORTS = 5 };

static const struct canal_node node = {
	.router4 = { [10] = 0xff, 0xff, 10, 1, 0, 0 }, .router6 = { 0xfd, [15] = 1 }, .mac = { 2, 0, 0, 0, 0, 1 },
	.policy_default = CANAL_ALLOW, .vni = 1, .mss_clamp = 1
};
static const struct canal_vtep vteps[] = {
	{ .addr = { [10] = 0xff, 0xff, 192, 0, 2, 2 }, .port_be = 0x1821, .mtu_bytes = 1400, .mac = { 2, 0, 0, 0, 0, 2 },
	  .encap = CANAL_ENCAP_VXLAN, .family = 4, .id = 1 },
	{ .addr = { [10] = 0xff, 0xff, 192, 0, 2, 3 }, .port_be = 0x5d20, .mtu_bytes = 1300, .encap = CANAL_ENCAP_UDP, .family = 4, .id = 2 },
};
/* 10.1.0.2 pod 0, 10.1.0.3 pod 1, 10.1.0.0/24 host, 10.1.2.0/24 and fd02::/16 vxlan, 10.1.3.0/24 udp, 10.1.0.0/16 nobody, rest host */
static const struct canal_fib_entry fib[] = {
	{ .prefix = { [10] = 0xff, 0xff, 10, 1, 0, 2 }, .family = 4, .plen = 32, .target = CANAL_TARGET_PORT | CANAL_TARGET_LOCAL | 0 },
	{ .prefix = { [10] = 0xff, 0xff, 10, 1, 0, 3 }, .family = 4, .plen = 32, .target = CANAL_TARGET_PORT | CANAL_TARGET_LOCAL | 1 },
	{ .prefix = { [10] = 0xff, 0xff, 10, 1, 0, 0 }, .family = 4, .plen = 24, .target = CANAL_TARGET_PORT | CANAL_TARGET_LOCAL | 2 },
	{ .prefix = { [10] = 0xff, 0xff, 10, 1, 2, 0 }, .family = 4, .plen = 24, .target = CANAL_TARGET_VTEP | 0 },
	{ .prefix = { [10] = 0xff, 0xff, 10, 1, 3, 0 }, .family = 4, .plen = 24, .target = CANAL_TARGET_VTEP | 1 },
	{ .prefix = { [10] = 0xff, 0xff, 10, 1, 0, 0 }, .family = 4, .plen = 16, .target = CANAL_TARGET_REJECT },
	{ .prefix = { [10] = 0xff, 0xff, 0, 0, 0, 0 }, .family = 4, .plen = 0, .target = CANAL_TARGET_PORT | 2 },
	{ .prefix = { 0xfd, 0, [15] = 2 }, .family = 6, .plen = 128, .target = CANAL_TARGET_PORT | CANAL_TARGET_LOCAL | 0 },
	{ .prefix = { 0xfd, 2 }, .family = 6, .plen = 16, .target = CANAL_TARGET_VTEP | 0 },
};

/* One class for everybody; rows that begin with the policy's number: no policy, all allowed, all rejected ... */
static const struct canal_row policy_rows[] = {
	{ .sport_hi = 0xffff, .dport_hi = 0x7fff, .proto_hi = 0xff, .action = CANAL_ACTION_LOG, .rule = 1 },
	{ .sport_hi = 0x3fff, .dport_hi = 0xffff, .proto_hi = 0xff, .action = CANAL_ACTION_PASS, .rule = 2, .next = 4 },
	{ .sport_hi = 0xffff, .dport_hi = 0x0fff, .proto_hi = 0x40, .action = CANAL_ACTION_REJECT, .rule = 3 },
	{ .sport_hi = 0xffff, .dport_hi = 0x1fff, .proto_hi = 0xff, .action = CANAL_ACTION_DENY, .rule = 4 },
	{ .sport_hi = 0xffff, .dport_hi = 0xffff, .proto_hi = 0xff, .action = CANAL_ACTION_ALLOW, .rule = 5 },
};
enum { POLICY_ROWS = sizeof policy_rows / sizeof *policy_rows, POLICIES = 4 };

struct world { struct canal_dp *dp; int fds[PORTS]; uint8_t *out; struct canal_frame *frames; uint64_t generation; struct canal_policy *policies[POLICIES]; };

/* Which rows hold: none, those of the outcome `which`, or all. */
static struct canal_policy *policy_make(uint32_t which)
{
	static const uint64_t vectors[POLICIES] = { 0, 1ull << 4, 1ull << 2, (1ull << POLICY_ROWS) - 1 };
	const struct canal_fib_entry everybody[] = { { .prefix = { [10] = 0xff, 0xff }, .family = 4 }, { .family = 6 } };
	const struct canal_endpoint endpoints[] = { { .port = 0, .program = { 0, 0 } }, { .port = 1, .program = { 0, CANAL_PROGRAM_NONE } } };
	const uint32_t one = 0, no_flags = 0;
	struct canal_classes *classes;
	struct canal_program *program;
	struct canal_policy *policy;
	struct canal_fault fault;

	if (canal_classes_build(NULL, NULL, 0, everybody, 2, &no_flags, 1, &classes, &fault) != CANAL_OK ||
	    canal_program_build(policy_rows, POLICY_ROWS, &vectors[which], 1, &one, &one, 1, &program, &fault) != CANAL_OK ||
	    canal_policy_build(classes, &program, 1, endpoints, 2, which & 1, &policy, &fault) != CANAL_OK)
		abort();
	canal_classes_release(classes);
	canal_program_release(program);
	return policy;
}

static void world_make(struct world *w)
{
	const struct canal_dp_config config = { .seed = { 1, 2 }, .ct_max = 256, .ct_share = 64, .frag_max = 16, .icmp_per_s = 1000, .rules_max = 8, .flags = CANAL_DP_RESET_CUT,
	                                        .gso_segments_max = 64 };
	const struct canal_port_config ports[PORTS] = {
		{ .kind = CANAL_PORT_POD, .mtu_bytes = 1400 }, { .kind = CANAL_PORT_POD, .mtu_bytes = 1400 },
		{ .kind = CANAL_PORT_HOST, .mtu_bytes = 1400 }, { .kind = CANAL_PORT_UNDERLAY, .encap = CANAL_ENCAP_VXLAN, .family = 4 },
		{ .kind = CANAL_PORT_UNDERLAY, .encap = CANAL_ENCAP_UDP, .family = 4 },
	};
	struct canal_fault fault;

	w->out = malloc(OUT_BYTES);
	w->frames = malloc(OUT_FRAMES * sizeof *w->frames);
	if (!w->out || !w->frames || canal_dp_new(&config, &w->dp, &fault) != CANAL_OK)
		abort();
	for (int i = 0; i < PORTS; i++) {
		struct canal_port_config port = ports[i];

		port.fd = w->fds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (canal_port_add(w->dp, &port, &fault) != i)
			abort();
	}
	for (uint32_t i = 1; i < POLICIES; i++)
		w->policies[i] = policy_make(i);
}

static void publish(struct world *w, uint8_t which)
{
	struct canal_tables *tables;
	struct canal_fault fault;

	if (canal_tables_build(&node, vteps, sizeof vteps / sizeof *vteps, fib, sizeof fib / sizeof *fib, ++w->generation, &tables, &fault) != CANAL_OK)
		abort();
	canal_tables_set_policy(tables, w->policies[which % POLICIES]);
	canal_dp_publish(w->dp, tables);
	canal_dp_reclaim(w->dp);
}

static void world_check(struct world *w)
{
	uint64_t c[CANAL_COUNTERS], drops[CANAL_DROPS], in, out;
	struct canal_status status;

	canal_counters_read(w->dp, c, drops);
	canal_status_read(w->dp, &status);
	in = c[CANAL_RX_POD] + c[CANAL_RX_HOST] + c[CANAL_RX_UNDERLAY] + c[CANAL_ORIGINATED];
	out = c[CANAL_TX_POD] + c[CANAL_TX_HOST] + c[CANAL_TX_UNDERLAY] + status.queued;
	for (int i = 0; i < CANAL_DROPS; i++)
		out += drops[i];
	if (in != out)
		abort();
}

/* Where the (first) IP packet of a frame starts: behind the vnet header, the VXLAN header, or nothing. */
static void fix_frame(const struct canal_frame *frame, uint8_t *bytes)
{
	static const uint32_t before[PORTS] = { CANAL_VNET_HDR_SIZE, CANAL_VNET_HDR_SIZE, CANAL_VNET_HDR_SIZE, 22, 0 };
	uint32_t at = before[frame->port], step = frame->port >= 3 && frame->gso_size > at ? frame->gso_size : frame->size;

	for (; at < frame->size; at += step)
		fix_ipv4(bytes + at, frame->size - at);
}

static size_t rows(uint8_t *data, size_t size, struct canal_frame *frames)
{
	size_t n = 0, at = 0;

	while (n < FRAMES_MAX && at + 6 <= size) {
		struct canal_frame *frame = &frames[n];
		uint32_t want = load_be16(data + at + 1) & 0xfff, left = (uint32_t)(size - at - 6);

		*frame = (struct canal_frame){ .port = data[at] % PORTS, .offset = (uint32_t)at + 6, .size = want < left ? want : left };
		if (frame->port >= 3) {
			frame->gso_size = load_be16(data + at + 3) & 0x7ff;
			frame->tos = data[at + 5];
			memcpy(frame->addr, vteps[data[at] >> 7 ? 0 : frame->port - 3].addr, 16);
		} else if (frame->size < CANAL_VNET_HDR_SIZE) {
			break;
		}
		fix_frame(frame, data + frame->offset);
		at += 6 + frame->size;
		n++;
	}
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	static uint64_t now_ms;
	struct canal_frame frames[FRAMES_MAX];
	uint8_t *bytes = malloc(size ? size : 1);
	size_t n;

	if (!w.dp)
		world_make(&w);
	if (size == 0) {
		free(bytes);
		return 0;
	}
	publish(&w, data[0]);
	n = rows(memcpy(bytes, data + 1, size - 1), size - 1, frames);
	now_ms += 100;
	if (canal_process(w.dp, bytes, frames, n, now_ms, w.out, OUT_BYTES, w.frames, OUT_FRAMES) == CANAL_EINVAL)
		abort();
	world_check(&w);
	free(bytes);
	return 0;
}
