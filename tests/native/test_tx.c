/*
 * test_tx.c - tx.c before a kernel that takes, refuses and stalls as the test says.
 *
 * Place:      compiled with native/tx.c alone; the worker's events end here.
 * Invariants: whatever the kernel answers, every packet that was queued is counted once, as sent or as dropped, and the payloads that it
 *             took are those that were queued, in their order.
 */
#include "check.h"
#include "tx.h"

#include <errno.h>

enum { PAYLOADS_MAX = 512, PAYLOAD_MAX = 64 };

/* What the kernel does, and what it saw. */
static struct kernel {
	int (*answer)(const struct mmsghdr *header);   /* 0, or a negative errno */
	uint32_t at_most;                              /* messages that one call takes */
	uint32_t calls, waits, events;
	bool drains;                                   /* waiting helps */
	uint8_t taken[PAYLOADS_MAX * PAYLOAD_MAX];
	size_t n_taken;
} kernel;

static bool is_gso(const struct mmsghdr *header)
{
	return header->msg_hdr.msg_control != NULL;
}

static int udp_send(struct worker *w, const struct port *port, struct mmsghdr *headers, uint32_t n)
{
	(void)w, (void)port;
	kernel.calls++;
	for (uint32_t i = 0; i < n && i < kernel.at_most; i++) {
		int answer = kernel.answer(&headers[i]);

		if (answer)
			return i ? (int)i : answer;
		for (size_t j = 0; j < headers[i].msg_hdr.msg_iovlen; j++) {
			const struct iovec *iov = &headers[i].msg_hdr.msg_iov[j];

			memcpy(kernel.taken + kernel.n_taken, iov->iov_base, iov->iov_len);
			kernel.n_taken += iov->iov_len;
		}
	}
	return (int)(n < kernel.at_most ? n : kernel.at_most);
}

static int udp_wait(struct worker *w, const struct port *port)
{
	(void)w, (void)port;
	kernel.waits++;
	return kernel.drains ? 0 : -EAGAIN;
}

void worker_event(struct worker *w, enum canal_event_kind kind, const struct port *port, const uint8_t *addr, uint32_t value)
{
	(void)w, (void)kind, (void)port, (void)addr, (void)value;
	kernel.events++;
}

/* ---- one queue ------------------------------------------------------------------------------------------------------------- */

static struct canal_dp dp;
static struct port ports[1];
static struct tx_queue queue;
static struct canal_vtep vteps[2];
static struct canal_tables tables;
static struct worker w;

static const struct io_ops ops = { .udp_send = udp_send, .udp_wait = udp_wait };

static void begin(int (*answer)(const struct mmsghdr *header))
{
	kernel = (struct kernel){ .answer = answer, .at_most = TX_MESSAGES_MAX };
	memset(&dp, 0, sizeof dp);
	memset(&w, 0, sizeof w);
	memset(ports, 0, sizeof ports);
	memset(&queue, 0, sizeof queue);
	dp.ports = ports;
	dp.config.gso_segments_max = 64;
	ports[0].tx = &queue;
	for (uint32_t i = 0; i < 2; i++)
		vteps[i] = (struct canal_vtep){ .family = 4, .port_be = 1 };
	tables = (struct canal_tables){ .vteps = vteps, .n_vteps = 2 };
	w.dp = &dp;
	w.io = &ops;
	w.tables = &tables;
}

/* Queue n payloads of `size` bytes in two pieces, to both VTEPs in turn every `run` payloads; flush; compare what the kernel took. */
static void push(uint32_t n, uint32_t size, uint32_t run, bool all_taken)
{
	static uint8_t bytes[PAYLOADS_MAX * PAYLOAD_MAX];
	uint64_t seed = n * 1000 + size;

	random_bytes(&seed, bytes, sizeof bytes);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t *at = bytes + (size_t)i * size;
		struct iovec iov[2] = { { .iov_base = at, .iov_len = 8 }, { .iov_base = at + 8, .iov_len = size - 8 } };

		tx_append(&w, &ports[0], i / run % 2, 0, iov, 2, 1, size);
	}
	tx_flush(&w);
	if (all_taken) {
		CHECK_EQ(kernel.n_taken, n * size);
		CHECK_BYTES(kernel.taken, bytes, (size_t)n * size);
	}
}

static uint64_t sent(void) { return w.counters.own.counter[CANAL_TX_UNDERLAY]; }
static uint64_t dropped(enum canal_drop reason) { return w.counters.own.drop[reason]; }

/* ---- answers --------------------------------------------------------------------------------------------------------------- */

static int takes(const struct mmsghdr *header)
{
	(void)header;
	return 0;
}

static int is_full(const struct mmsghdr *header)
{
	(void)header;
	return -EAGAIN;
}

static int is_full_until_waited_for(const struct mmsghdr *header)
{
	(void)header;
	return kernel.waits ? 0 : -EAGAIN;
}

static int cannot_segment(const struct mmsghdr *header)
{
	return is_gso(header) ? -EIO : 0;
}

static int path_is_narrow(const struct mmsghdr *header)
{
	(void)header;
	return -EMSGSIZE;
}

/* An ICMP error of something sent before: reported instead of sending, once. */
static int remembers_an_error(const struct mmsghdr *header)
{
	static bool told;

	(void)header;
	told = !told;
	return told ? -ECONNREFUSED : 0;
}

static void check_that_order_and_runs_are_kept(void)
{
	begin(takes);
	push(200, 40, 20, true);
	CHECK_EQ(sent(), 200);
	CHECK_EQ(kernel.calls, 1);
	begin(takes);
	kernel.at_most = 3;
	push(200, 40, 20, true);
	CHECK_EQ(sent(), 200);
	CHECK_EQ(kernel.calls, 4);
}

static void check_that_refused_segmentation_is_replayed(void)
{
	begin(cannot_segment);
	push(60, 40, 20, true);
	CHECK_EQ(sent(), 60);
	CHECK_EQ(kernel.events, 1);
	CHECK_EQ(atomic_load(&ports[0].gso_off), 1);
}

static void check_that_what_is_too_big_is_told_and_dropped(void)
{
	begin(path_is_narrow);
	push(60, 40, 20, false);
	CHECK_EQ(sent(), 0);
	CHECK_EQ(dropped(CANAL_DROP_TX_MSGSIZE), 60);
	CHECK_EQ(atomic_load(&ports[0].gso_off), 0);
}

static void check_that_an_old_error_costs_nothing(void)
{
	begin(remembers_an_error);
	push(60, 40, 20, true);
	CHECK_EQ(sent(), 60);
}

static void check_that_a_full_socket_is_waited_for(void)
{
	begin(is_full_until_waited_for);
	kernel.drains = true;
	push(60, 40, 1, true);
	CHECK_EQ(sent(), 60);
	CHECK_EQ(kernel.waits, 1);
}

/* All other ports wait with it: one that stays full may hold them up once a flush, not once a message. */
static void check_that_a_full_socket_is_given_up_for_a_flush(void)
{
	begin(is_full);
	push(60, 40, 1, false);
	CHECK_EQ(sent(), 0);
	CHECK_EQ(dropped(CANAL_DROP_TX_AGAIN), 60);
	CHECK_EQ(kernel.waits, 1);
	push(60, 40, 1, false);
	CHECK_EQ(kernel.waits, 2);
}

int main(void)
{
	check_that_order_and_runs_are_kept();
	check_that_refused_segmentation_is_replayed();
	check_that_what_is_too_big_is_told_and_dropped();
	check_that_an_old_error_costs_nothing();
	check_that_a_full_socket_is_waited_for();
	check_that_a_full_socket_is_given_up_for_a_flush();
	return 0;
}
