/*
 * datapath.c - the public handle: life, ports, snapshots, looking in.
 *
 * Place:      what Python calls. Nothing here is on a packet's way.
 * Structure:  see worker.h.
 * Invariants: a port's row is filled before its state becomes LIVE, and is reused only after the worker has forgotten its flows; rows are
 *             handed out round, so that an old index does not soon name another pod.
 * Threads:    control, but for what reads counters, errors, status, ports, hits and notes (any).
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "notes.h"
#include "worker.h"

int canal_abi_version(void) { return CANAL_ABI_VERSION; }

const char *canal_strerror(int err)
{
	switch (err) {
	case CANAL_OK:
		return "ok";
	case CANAL_EINVAL:
		return "value out of its domain";
	case CANAL_ERANGE:
		return "index out of range, or too many rows";
	case CANAL_ENOMEM:
		return "out of memory";
	case CANAL_EBUSY:
		return "busy: the worker runs, or the slot is taken";
	case CANAL_EDUP:
		return "said twice";
	case CANAL_ESYS:
		return "system call failed";
	default:
		return "unknown error";
	}
}

static int fault_set(struct canal_fault *fault, int code, int table, uint32_t row, size_t field, int sys_errno)
{
	*fault = (struct canal_fault){ .code = code, .table = table, .row = row, .field = (uint32_t)field, .sys_errno = sys_errno };
	return code;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

static int config_check(const struct canal_dp_config *c, struct canal_fault *fault)
{
	const struct { uint32_t value, least, most; size_t field; } rows[] = {
		{ c->ct_max, 1, 1u << 24, offsetof(struct canal_dp_config, ct_max) },
		{ c->ct_share, 1, 1u << 24, offsetof(struct canal_dp_config, ct_share) },
		{ c->frag_max, 1, 1u << 20, offsetof(struct canal_dp_config, frag_max) },
		{ c->busy_poll_us, 0, 1000000, offsetof(struct canal_dp_config, busy_poll_us) },
		{ c->icmp_per_s, 0, 1000000, offsetof(struct canal_dp_config, icmp_per_s) },
		{ c->gso_segments_max, 1, CANAL_SEGMENTS_MAX, offsetof(struct canal_dp_config, gso_segments_max) },
		{ c->rules_max, 0, CANAL_RULES_MAX, offsetof(struct canal_dp_config, rules_max) },
		{ c->flags, 0, CANAL_DP_STRICT_CSUM | CANAL_DP_NO_UDP_GSO | CANAL_DP_NO_COALESCE | CANAL_DP_NO_USO_WRITE | CANAL_DP_RESET_CUT,
		  offsetof(struct canal_dp_config, flags) },
	};

	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		if (rows[i].value < rows[i].least || rows[i].value > rows[i].most)
			return fault_set(fault, CANAL_EINVAL, CANAL_TABLE_CONFIG, 0, rows[i].field, 0);
	return fault_set(fault, CANAL_OK, CANAL_TABLE_CONFIG, 0, 0, 0);
}

static void dp_destroy(struct canal_dp *dp)
{
	for (uint32_t i = 0; dp->ports && i < CANAL_PORTS_MAX; i++)
		free(dp->ports[i].tx);
	free(dp->ports);
	if (dp->worker)
		worker_free(dp->worker);
	free((void *)dp->hits);
	epoch_destroy(&dp->epoch);
	if (dp->epoll_fd >= 0)
		close(dp->epoll_fd);
	if (dp->wake_fd >= 0)
		close(dp->wake_fd);
	if (dp->events.fd >= 0)
		close(dp->events.fd);
	free(dp);
}

/* Before the first snapshot every packet is dropped for want of a route. */
static int publish_nothing(struct canal_dp *dp, struct canal_fault *fault)
{
	struct canal_tables *nothing;
	struct canal_node node = { .vni = 1, .policy_default = CANAL_DENY };
	int rc = canal_tables_build(&node, NULL, 0, NULL, 0, 0, &nothing, fault);

	if (rc == CANAL_OK)
		epoch_publish(&dp->epoch, nothing);
	return rc;
}

int canal_dp_new(const struct canal_dp_config *config, struct canal_dp **out, struct canal_fault *fault)
{
	struct canal_dp *dp;
	int rc = config_check(config, fault);

	*out = NULL;
	if (rc != CANAL_OK)
		return rc;
	dp = calloc(1, sizeof *dp);
	if (!dp)
		return fault_set(fault, CANAL_ENOMEM, CANAL_TABLE_CONFIG, 0, 0, 0);
	dp->config = *config;
	epoch_init(&dp->epoch);
	dp->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	dp->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	dp->events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	dp->ports = calloc(CANAL_PORTS_MAX, sizeof *dp->ports);
	dp->hits = calloc((size_t)config->rules_max + 1, sizeof *dp->hits);
	dp->worker = worker_new(dp);
	if (dp->epoll_fd < 0 || dp->wake_fd < 0 || dp->events.fd < 0)
		rc = fault_set(fault, CANAL_ESYS, CANAL_TABLE_CONFIG, 0, 0, errno);
	else if (!dp->ports || !dp->hits || !dp->worker)
		rc = fault_set(fault, CANAL_ENOMEM, CANAL_TABLE_CONFIG, 0, 0, 0);
	else
		rc = publish_nothing(dp, fault);
	if (rc != CANAL_OK) {
		dp_destroy(dp);
		return rc;
	}
	*out = dp;
	return CANAL_OK;
}

int canal_dp_free(struct canal_dp *dp)
{
	if (atomic_load_explicit(&dp->running, memory_order_acquire))
		return CANAL_EBUSY;
	dp_destroy(dp);
	return CANAL_OK;
}

int canal_dp_publish(struct canal_dp *dp, struct canal_tables *tables)
{
	epoch_publish(&dp->epoch, tables);
	return CANAL_OK;
}

int canal_dp_reclaim(struct canal_dp *dp) { return (int)epoch_reclaim(&dp->epoch); }

/* ---- ports --------------------------------------------------------------------------------------------------------------- */

static int port_check(const struct canal_port_config *c, struct canal_fault *fault)
{
	size_t field = 0;
	bool underlay = c->kind == CANAL_PORT_UNDERLAY, bad = false;

	if (c->fd < 0)
		field = offsetof(struct canal_port_config, fd), bad = true;
	else if (c->kind < CANAL_PORT_POD || c->kind > CANAL_PORT_UNDERLAY)
		field = offsetof(struct canal_port_config, kind), bad = true;
	else if (underlay && c->encap > CANAL_ENCAP_VXLAN)
		field = offsetof(struct canal_port_config, encap), bad = true;
	else if (underlay && c->family != 4 && c->family != 6)
		field = offsetof(struct canal_port_config, family), bad = true;
	else if (c->flags & ~(underlay ? CANAL_PORT_TX_ONLY : 0))
		field = offsetof(struct canal_port_config, flags), bad = true;
	return fault_set(fault, bad ? CANAL_EINVAL : CANAL_OK, CANAL_TABLE_PORT, 0, field, 0);
}

static struct port *port_find_free(struct canal_dp *dp)
{
	for (uint32_t i = 0; i < CANAL_PORTS_MAX; i++) {
		struct port *port = &dp->ports[(dp->next_port + i) % CANAL_PORTS_MAX];

		if (atomic_load_explicit(&port->state, memory_order_acquire) == PORT_FREE) {
			port->index = (uint32_t)(port - dp->ports);
			return port;
		}
	}
	return NULL;
}

static bool sends(const struct port *port, uint32_t set)
{
	return port->kind == CANAL_PORT_UNDERLAY && atomic_load_explicit(&port->state, memory_order_relaxed) == PORT_LIVE &&
	       tx_set_of(port->encap, port->family) == set;
}

/* Which sockets may send for this set: those for sending only where there are any, else those that also receive. */
static void tx_set_rebuild(struct canal_dp *dp, uint32_t set)
{
	uint32_t rows[TX_PORTS_MAX] = { 0 }, n = 0;
	bool only = false;

	for (uint32_t i = 0; i < dp->n_ports; i++)
		only |= sends(&dp->ports[i], set) && (dp->ports[i].flags & CANAL_PORT_TX_ONLY);
	for (uint32_t i = 0; i < dp->n_ports && n < TX_PORTS_MAX; i++)
		if (sends(&dp->ports[i], set) && !only == !(dp->ports[i].flags & CANAL_PORT_TX_ONLY))
			rows[n++] = i;
	atomic_store_explicit(&dp->tx_sets[set].n, 0, memory_order_release);
	epoch_wait_quiescent(&dp->epoch);
	memcpy(dp->tx_sets[set].port, rows, n * sizeof *rows);
	atomic_store_explicit(&dp->tx_sets[set].n, n, memory_order_release);
}

static bool tx_set_full(struct canal_dp *dp, const struct canal_port_config *c)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < dp->n_ports; i++)
		n += sends(&dp->ports[i], tx_set_of(c->encap, c->family));
	return n >= TX_PORTS_MAX;
}

int canal_port_add(struct canal_dp *dp, const struct canal_port_config *config, struct canal_fault *fault)
{
	bool waits = !(config->flags & CANAL_PORT_TX_ONLY);   /* see io.c */
	struct epoll_event event = { .events = EPOLLIN };
	struct port *port;
	int rc = port_check(config, fault);

	if (rc != CANAL_OK)
		return rc;
	port = port_find_free(dp);
	if (!port || (config->kind == CANAL_PORT_UNDERLAY && tx_set_full(dp, config)))
		return fault_set(fault, CANAL_ERANGE, CANAL_TABLE_PORT, 0, 0, 0);
	if (config->kind == CANAL_PORT_UNDERLAY && !port->tx) {
		port->tx = calloc(1, sizeof *port->tx);
		if (!port->tx)
			return fault_set(fault, CANAL_ENOMEM, CANAL_TABLE_PORT, 0, 0, 0);
	}
	port->fd = config->fd;
	port->kind = config->kind;
	port->encap = config->encap;
	port->family = config->family;
	port->flags = config->flags;
	port->mtu_bytes = config->mtu_bytes;
	port->id = config->id;
	port->icmp = (struct icmp_limiter){ .per_s = dp->config.icmp_per_s };
	atomic_store_explicit(&port->gso_off, 0, memory_order_relaxed);
	memset(&port->stats, 0, sizeof port->stats);
	atomic_store_explicit(&port->state, PORT_LIVE, memory_order_release);
	event.data.u32 = port->index;
	if (waits && epoll_ctl(dp->epoll_fd, EPOLL_CTL_ADD, port->fd, &event) < 0) {
		atomic_store_explicit(&port->state, PORT_FREE, memory_order_release);
		return fault_set(fault, CANAL_ESYS, CANAL_TABLE_PORT, 0, offsetof(struct canal_port_config, fd), errno);
	}
	dp->next_port = port->index + 1;
	if (dp->n_ports < port->index + 1)
		dp->n_ports = port->index + 1;
	if (port->kind == CANAL_PORT_UNDERLAY)
		tx_set_rebuild(dp, tx_set_of(port->encap, port->family));
	if (port->kind == CANAL_PORT_HOST)
		atomic_store_explicit(&dp->host_target, CANAL_TARGET_PORT | port->index, memory_order_release);
	return (int)port->index;
}

/* Without a worker there is nobody to forget the port's flows but this thread. */
static void port_forget(struct canal_dp *dp, struct port *port)
{
	uint64_t one = 1;

	if (!atomic_load_explicit(&dp->running, memory_order_acquire)) {
		ct_remove_port(dp->worker->ct, port->index);
		atomic_store_explicit(&port->state, PORT_FREE, memory_order_release);
		return;
	}
	atomic_store_explicit(&dp->purge, 1, memory_order_release);
	if (write(dp->wake_fd, &one, sizeof one) < 0)
		return;   /* the counter is full: the worker is awake */
}

int canal_port_del(struct canal_dp *dp, uint32_t index)
{
	struct port *port;

	if (index >= CANAL_PORTS_MAX)
		return CANAL_ERANGE;
	port = &dp->ports[index];
	if (atomic_load_explicit(&port->state, memory_order_acquire) != PORT_LIVE)
		return CANAL_EINVAL;
	epoll_ctl(dp->epoll_fd, EPOLL_CTL_DEL, port->fd, NULL);
	atomic_store_explicit(&port->state, PORT_CLOSING, memory_order_release);
	if (port->kind == CANAL_PORT_UNDERLAY)
		tx_set_rebuild(dp, tx_set_of(port->encap, port->family));
	if (atomic_load_explicit(&dp->host_target, memory_order_relaxed) == (CANAL_TARGET_PORT | index))
		atomic_store_explicit(&dp->host_target, CANAL_TARGET_NONE, memory_order_release);
	epoch_wait_quiescent(&dp->epoch);
	port_forget(dp, port);
	return CANAL_OK;
}

/* ---- looking in ---------------------------------------------------------------------------------------------------------- */

int canal_counters_read(struct canal_dp *dp, uint64_t *counters, uint64_t *drops)
{
	counters_read(&dp->worker->counters, counters, drops);
	return CANAL_OK;
}

int canal_errors_read(struct canal_dp *dp, uint64_t *errors)
{
	for (uint32_t i = 0; i < CANAL_CALLS * CANAL_ERRNO_MAX; i++)
		errors[i] = atomic_load_explicit(&dp->worker->errors[i / CANAL_ERRNO_MAX][i % CANAL_ERRNO_MAX], memory_order_relaxed);
	return CANAL_OK;
}

int canal_ports_read(struct canal_dp *dp, struct canal_port_stats *stats, size_t n)
{
	for (uint32_t i = 0; i < dp->n_ports && i < n; i++) {
		struct port *port = &dp->ports[i];

		stats[i] = (struct canal_port_stats){
			.rx_packets = atomic_load_explicit(&port->stats.rx_packets, memory_order_relaxed),
			.rx_bytes = atomic_load_explicit(&port->stats.rx_bytes, memory_order_relaxed),
			.tx_packets = atomic_load_explicit(&port->stats.tx_packets, memory_order_relaxed),
			.tx_bytes = atomic_load_explicit(&port->stats.tx_bytes, memory_order_relaxed),
			.drops = atomic_load_explicit(&port->stats.drops, memory_order_relaxed),
			.id = port->id,
			.in_use = atomic_load_explicit(&port->state, memory_order_relaxed) == PORT_LIVE,
			.gso_off = atomic_load_explicit(&port->gso_off, memory_order_relaxed),
		};
	}
	return (int)dp->n_ports;
}

/* Reads while the worker writes: a row may mix two moments of one flow, never two flows' memory bounds. */
int canal_flows_read(struct canal_dp *dp, uint32_t *cursor, struct canal_flow_info *flows, size_t n)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return canal_ct_read(dp->worker->ct, (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000, cursor, flows, n);
}

int canal_events_fd(struct canal_dp *dp) { return dp->events.fd; }

int canal_events_read(struct canal_dp *dp, struct canal_event *events, size_t n)
{
	uint32_t tail = atomic_load_explicit(&dp->events.tail, memory_order_relaxed), lost;
	size_t count = 0;
	uint64_t told;

	while (read(dp->events.fd, &told, sizeof told) < 0 && errno == EINTR)
		;
	while (count < n && tail != atomic_load_explicit(&dp->events.head, memory_order_acquire))
		events[count++] = dp->events.ring[tail++ % EVENTS_MAX];
	atomic_store_explicit(&dp->events.tail, tail, memory_order_release);
	lost = atomic_exchange_explicit(&dp->events.lost, 0, memory_order_relaxed);
	if (lost && count < n)
		events[count++] = (struct canal_event){ .kind = CANAL_EVENT_LOST, .value = lost };
	return (int)count;
}

int canal_status_read(struct canal_dp *dp, struct canal_status *status)
{
	uint32_t live = 0, gso_off = 0;

	for (uint32_t i = 0; i < dp->n_ports; i++) {
		live += atomic_load_explicit(&dp->ports[i].state, memory_order_relaxed) == PORT_LIVE;
		gso_off += atomic_load_explicit(&dp->ports[i].gso_off, memory_order_relaxed);
	}
	*status = (struct canal_status){
		.generation = atomic_load_explicit(&dp->epoch.current, memory_order_acquire)->generation,
		.published = atomic_load_explicit(&dp->epoch.published, memory_order_relaxed),
		.retired = atomic_load_explicit(&dp->epoch.n_retired, memory_order_relaxed),
		.running = atomic_load_explicit(&dp->running, memory_order_relaxed),
		.ct_entries = atomic_load_explicit(&dp->ct_entries, memory_order_relaxed),
		.ct_max = dp->config.ct_max,
		.frag_entries = atomic_load_explicit(&dp->frag_entries, memory_order_relaxed),
		.ports = live,
		.queued = 0,   /* counters are published between batches, when the worker holds no packet */
		.gso_off = gso_off,
	};
	return CANAL_OK;
}

int canal_hits_read(struct canal_dp *dp, uint32_t first, uint64_t *hits, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (first + i >= dp->config.rules_max)
			return CANAL_ERANGE;
		hits[i] = atomic_load_explicit(&dp->hits[first + i], memory_order_relaxed);
	}
	return CANAL_OK;
}

int canal_notes_read(struct canal_dp *dp, uint64_t since_ms, struct canal_note *notes, size_t n, uint64_t *now_ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	*now_ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
	return (int)notes_read(dp->worker->notes, since_ms, notes, n);
}
