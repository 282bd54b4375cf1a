/*
 * worker.c - the loop that moves packets, and what it owns.
 *
 * Place:      canal_worker_run() is the thread; it calls io.c to read, pipeline.c to forward.
 * Structure:
 *
 *     ┌─► poll all ports ─► each ready port: read a batch ─► pipeline ─┐
 *     │       └─ nothing for busy_poll_us, or no use in that: sleep    │
 *     └──── housekeeping: expiry, counters, ports to forget ◄──────────┘
 *
 * Invariants: one snapshot a turn, entered before the first packet and left before sleeping, so a sleeping worker delays no reclaim.
 *             A port gets one batch a turn: none can starve the others.
 * Threads:    this is the worker. worker_event() is the only way in which it speaks; it never waits for the control thread.
 */
#include "worker.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "notes.h"
#include "pipeline.h"
#include "spin.h"

enum {
	READY_MAX = 64,
	WAKE = 0xffffffff,             /* epoll data of the wake-up descriptor */
	SWEEP_EVERY_MS = 20,
	SWEEP_ENTRIES = 2048,
	SLEEP_MS = 500,                /* while flows may expire */
	REST_NS = 2000000              /* after a read that failed without reason */
};

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

static void *map_bytes(size_t size)
{
	void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return bytes == MAP_FAILED ? NULL : bytes;
}

static const size_t tun_arena_size = TUN_ARENA_BYTES + CANAL_HEADROOM + CANAL_VNET_HDR_SIZE + READ_BYTES;
static const size_t udp_arena_size = (size_t)DATAGRAMS_MAX * (CANAL_HEADROOM + READ_BYTES);
static const size_t pieces_size = sizeof(struct iovec[CANAL_BATCH_MAX][PIECES_MAX]);

struct worker *worker_new(struct canal_dp *dp)
{
	struct worker *w = aligned_alloc(64, (sizeof *w + 63) & ~(size_t)63);

	if (!w)
		return NULL;
	memset(w, 0, sizeof *w);
	w->dp = dp;
	w->io = &io_kernel;
	w->tun_arena = map_bytes(tun_arena_size);
	w->udp_arena = map_bytes(udp_arena_size);
	w->heads = map_bytes(HEADS_BYTES);
	w->pieces = map_bytes(pieces_size);
	w->frags = frag_new(dp->config.frag_max, dp->config.seed);
	w->notes = notes_new();
	if (canal_ct_new(dp->config.ct_max, dp->config.ct_share, dp->config.seed, &w->ct) != CANAL_OK || !w->frags || !w->notes || !w->tun_arena ||
	    !w->udp_arena || !w->heads || !w->pieces) {
		worker_free(w);
		return NULL;
	}
	return w;
}

void worker_free(struct worker *w)
{
	if (w->tun_arena)
		munmap(w->tun_arena, tun_arena_size);
	if (w->udp_arena)
		munmap(w->udp_arena, udp_arena_size);
	if (w->heads)
		munmap(w->heads, HEADS_BYTES);
	if (w->pieces)
		munmap(w->pieces, pieces_size);
	if (w->ct)
		canal_ct_free(w->ct);
	if (w->frags)
		frag_free(w->frags);
	notes_free(w->notes);
	free(w);
}

void worker_event(struct worker *w, enum canal_event_kind kind, const struct port *port, const uint8_t *addr, uint32_t value)
{
	struct events *events = &w->dp->events;
	uint32_t head = atomic_load_explicit(&events->head, memory_order_relaxed);
	uint32_t tail = atomic_load_explicit(&events->tail, memory_order_acquire);
	struct canal_event *event = &events->ring[head % EVENTS_MAX];
	uint64_t one = 1;

	if (head - tail == EVENTS_MAX) {
		atomic_fetch_add_explicit(&events->lost, 1, memory_order_relaxed);
		return;
	}
	*event = (struct canal_event){ .kind = kind, .id = port->id, .port = port->index, .value = value };
	if (addr)
		memcpy(event->addr, addr, 16);
	atomic_store_explicit(&events->head, head + 1, memory_order_release);
	if (write(events->fd, &one, sizeof one) < 0)
		return;   /* the counter is full: the reader has been told */
}

/* ---- one turn ------------------------------------------------------------------------------------------------------------ */

static uint64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* The descriptor is dead: stop polling it, and let the control thread decide. */
static void port_failed(struct worker *w, struct port *port, int error)
{
	epoll_ctl(w->dp->epoll_fd, EPOLL_CTL_DEL, port->fd, NULL);
	worker_event(w, CANAL_EVENT_PORT_ERROR, port, NULL, (uint32_t)error);
}

/* Returns how many packets or datagrams the port brought. */
static uint32_t serve(struct worker *w, struct port *port, uint32_t ready)
{
	int failed = 0;
	uint32_t n = 0;

	if (port->kind == CANAL_PORT_UNDERLAY) {
		if (ready & EPOLLERR)
			io_read_errors(w, port);
		if (ready & EPOLLIN)
			n = io_receive(w, port, &failed);
		if (n)
			pipeline_from_underlay(w, port, n);
	} else {
		n = io_read_tun(w, port, &failed);
		if (n)
			pipeline_from_tun(w, port, n);
		else if (!failed && (ready & (EPOLLERR | EPOLLHUP)))
			failed = EBADFD;
	}
	if (unlikely(failed))
		port_failed(w, port, failed);
	return n;
}

static uint32_t turn(struct worker *w, const struct epoll_event *ready, int n_ready)
{
	uint32_t moved = 0;

	for (int i = 0; i < n_ready; i++) {
		struct port *port;

		if (ready[i].data.u32 == WAKE) {
			uint64_t count;

			if (read(w->dp->wake_fd, &count, sizeof count) < 0)
				continue;
		} else {
			port = &w->dp->ports[ready[i].data.u32];
			if (atomic_load_explicit(&port->state, memory_order_acquire) == PORT_LIVE)
				moved += serve(w, port, ready[i].events);
		}
	}
	return moved;
}

static void forget_ports(struct worker *w)
{
	if (likely(!atomic_load_explicit(&w->dp->purge, memory_order_acquire)))
		return;
	atomic_store_explicit(&w->dp->purge, 0, memory_order_relaxed);
	for (uint32_t i = 0; i < CANAL_PORTS_MAX; i++) {
		struct port *port = &w->dp->ports[i];

		if (atomic_load_explicit(&port->state, memory_order_acquire) != PORT_CLOSING)
			continue;
		ct_remove_port(w->ct, i);
		atomic_store_explicit(&port->state, PORT_FREE, memory_order_release);
	}
}

static void housekeeping(struct worker *w, uint64_t *swept_ms)
{
	forget_ports(w);
	if (w->now_ms - *swept_ms >= SWEEP_EVERY_MS) {
		*swept_ms = w->now_ms;
		canal_ct_sweep(w->ct, w->now_ms, SWEEP_ENTRIES);
		frag_sweep(w->frags, w->now_ms, SWEEP_ENTRIES);
	}
	atomic_store_explicit(&w->dp->ct_entries, (uint32_t)canal_ct_count(w->ct), memory_order_relaxed);
	atomic_store_explicit(&w->dp->frag_entries, frag_count(w->frags), memory_order_relaxed);
	counters_publish(&w->counters);
}

/* The kernel says that a port has something and then does not give it: asking again at once would only burn the processor. */
static void rest(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = REST_NS }, NULL);
}

static int poll_ports(struct worker *w, struct epoll_event *ready, int timeout_ms)
{
	worker_count(w, CANAL_SYSCALLS, 1);
	return epoll_wait(w->dp->epoll_fd, ready, READY_MAX, timeout_ms);
}

static int wait_awake(struct worker *w, struct epoll_event *ready)
{
	uint64_t since_us = clock_us();
	int n;

	do {
		sched_yield();
		n = poll_ports(w, ready, 0);
	} while (n <= 0 && clock_us() - since_us < w->dp->config.busy_poll_us);
	return n;
}

static int wait_asleep(struct worker *w, struct epoll_event *ready, uint64_t *swept_ms)
{
	bool idle = canal_ct_count(w->ct) == 0 && frag_count(w->frags) == 0;
	int n;

	w->now_ms = clock_us() / 1000;
	housekeeping(w, swept_ms);
	n = poll_ports(w, ready, idle ? -1 : SLEEP_MS);
	worker_count(w, CANAL_WAKEUPS, 1);
	return n;
}

/* Wait for something to do; returns as epoll_wait. Whoever publishes tables or removes a port need not wait for us meanwhile. */
static int wait_ready(struct worker *w, struct epoll_event *ready, struct spin *spin, uint64_t *swept_ms)
{
	int n = poll_ports(w, ready, 0);

	if (n > 0)
		return n;
	epoch_leave(&w->dp->epoch);
	if (w->dp->config.busy_poll_us && spin_is_worth_it(spin)) {
		n = wait_awake(w, ready);
		if (n > 0) {
			spin_hit(spin);
			return n;
		}
		spin_miss(spin);
	}
	return wait_asleep(w, ready, swept_ms);
}

void worker_clock(struct worker *w, uint64_t now_ms)
{
	w->now_ms = now_ms;
	if (unlikely(!w->born_ms))
		w->born_ms = now_ms;
	canal_ct_sweep(w->ct, now_ms, 0);
}

static void run(struct worker *w)
{
	struct canal_dp *dp = w->dp;
	uint64_t swept_ms = clock_us() / 1000;
	struct epoll_event ready[READY_MAX];
	struct spin spin = { 0 };

	while (!atomic_load_explicit(&dp->stop, memory_order_acquire)) {
		int n = wait_ready(w, ready, &spin, &swept_ms);

		worker_clock(w, clock_us() / 1000);
		w->tables = epoch_enter(&dp->epoch);
		w->stumbled = false;
		if (!turn(w, ready, n) && unlikely(w->stumbled))
			rest();
		if (n > 0)
			housekeeping(w, &swept_ms);
	}
	housekeeping(w, &swept_ms);
	epoch_leave(&dp->epoch);
}

int canal_worker_run(struct canal_dp *dp, uint32_t worker, struct canal_fault *fault)
{
	struct epoll_event wake = { .events = EPOLLIN, .data.u32 = WAKE };

	*fault = (struct canal_fault){ .code = CANAL_OK };
	if (worker != 0) {
		*fault = (struct canal_fault){ .code = CANAL_ERANGE, .table = CANAL_TABLE_CONFIG };
		return CANAL_ERANGE;
	}
	if (atomic_exchange_explicit(&dp->running, 1, memory_order_acq_rel)) {
		*fault = (struct canal_fault){ .code = CANAL_EBUSY, .table = CANAL_TABLE_CONFIG };
		return CANAL_EBUSY;
	}
	if (epoll_ctl(dp->epoll_fd, EPOLL_CTL_ADD, dp->wake_fd, &wake) < 0 && errno != EEXIST) {
		*fault = (struct canal_fault){ .code = CANAL_ESYS, .sys_errno = errno };
		atomic_store_explicit(&dp->running, 0, memory_order_release);
		return CANAL_ESYS;
	}
	prctl(PR_SET_NAME, "canal-worker");
	run(dp->worker);
	atomic_store_explicit(&dp->stop, 0, memory_order_relaxed);
	atomic_store_explicit(&dp->running, 0, memory_order_release);
	return CANAL_OK;
}

int canal_worker_stop(struct canal_dp *dp)
{
	uint64_t one = 1;

	atomic_store_explicit(&dp->stop, 1, memory_order_release);
	return write(dp->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN ? CANAL_ESYS : CANAL_OK;
}
