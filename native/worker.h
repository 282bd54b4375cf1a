/*
 * worker.h - the data path's state: ports, the worker and what it owns.
 *
 * Place:      shared by the files that move packets (pipeline, judge, emit, tx, io, worker) and by datapath.c, which makes and frees it.
 * Structure:
 *
 *     canal_dp ─┬─ ports[]           fds, one row each; made by the control thread, read by the worker
 *               ├─ epoch             the current snapshot
 *               ├─ events            ring from worker to control
 *               └─ worker ─┬─ arenas     bytes received, headers written
 *                          ├─ ct, frags  flows and fragments
 *                          └─ counters
 *
 * Invariants: a port's fields but `state`, `stats`, `icmp` and `gso_off` do not change while it is LIVE. All packets of a batch are sent or dropped
 *             before the arenas are used again, so between two batches the worker holds none.
 * Threads:    each struct says whose it is.
 */
#ifndef CANAL_WORKER_H
#define CANAL_WORKER_H
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "coalesce.h"
#include "conntrack.h"
#include "counters.h"
#include "epoch.h"
#include "fragment.h"
#include "gso.h"
#include "icmp.h"
#include "packet.h"
#include "stall.h"

enum {
	READ_BYTES = CANAL_PACKET_MAX + 1,                         /* one receive buffer, headroom excluded            */
	TUN_ARENA_BYTES = 1 << 20,                                 /* packets of one batch, packed                     */
	TUN_BATCH_BYTES = 512 << 10,                               /* stop reading a TUN after so much: stay in cache  */
	DATAGRAMS_MAX = 16,                                        /* datagrams of one receive call                    */
	HEADS_BYTES = 512 << 10,                                   /* headers of segments, fragments                   */
	TX_MESSAGES_MAX = 64,                                      /* messages of one send call                        */
	TX_IOV_MAX = 1024,                                         /* UIO_MAXIOV                                       */
	TX_SETS = 4,                                               /* encapsulations x families                        */
	TX_PORTS_MAX = 16,                                         /* sockets of one set, for source port entropy      */
	EVENTS_MAX = 256,
	OUTER_HEADROOM = 32                                        /* before each segment's head; >= every encap overhead */
};

enum port_state { PORT_FREE, PORT_LIVE, PORT_CLOSING };

/* Messages that wait for one sendmmsg. Owner: worker. */
struct tx_message {
	uint32_t first_iov, n_iov;
	uint32_t segment_size;          /* outer payload bytes of every segment but the last */
	uint32_t n_segments;
	uint32_t bytes;                 /* outer payload                                      */
	uint32_t packets;               /* to count: later fragments count none               */
	uint32_t inner_bytes;
	uint32_t vtep;
	uint8_t tos;
	bool closed;                    /* a short segment ended it                           */
};

struct tx_queue {
	uint32_t n, n_iov;
	bool full;                      /* the kernel's queue is, and stayed so while we waited */
	struct tx_message messages[TX_MESSAGES_MAX];
	struct mmsghdr headers[TX_MESSAGES_MAX];
	struct sockaddr_storage addrs[TX_MESSAGES_MAX];
	uint8_t control[TX_MESSAGES_MAX][64] __attribute__((aligned(8)));
	struct iovec iov[TX_IOV_MAX];
};

struct port {
	_Atomic uint32_t state;         /* enum port_state */
	int32_t fd;
	uint8_t kind, encap, family, flags;
	uint16_t mtu_bytes;
	uint32_t id, index;
	struct tx_queue *tx;            /* underlay only */
	_Atomic uint32_t gso_off;       /* worker: UDP_SEGMENT was refused here */
	struct icmp_limiter icmp;       /* worker: errors to whoever is behind this port; one cannot use up another's */
	struct { _Atomic uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes, drops; } stats;   /* worker */
};

/* The sockets that may send one encapsulation over one family. Written by control, read by the worker. */
struct tx_set { _Atomic uint32_t n; uint32_t port[TX_PORTS_MAX]; };

struct events {
	_Atomic uint32_t head, tail;    /* head: worker, tail: control */
	_Atomic uint32_t lost;
	int fd;
	struct canal_event ring[EVENTS_MAX];
};

/* One datagram as it came from a socket. */
struct datagram {
	uint8_t *data;
	uint32_t size;
	uint16_t gso_size;              /* UDP_GRO's, 0 = none */
	uint8_t tos;
	bool truncated;
	uint8_t addr[16];               /* outer source */
};

struct worker;
/* Where packets leave; the real one is io.c, process.c captures. Results as of writev and sendmmsg, errors as -errno. */
struct io_ops {
	int (*tun_write)(struct worker *w, const struct port *port, const struct iovec *iov, uint32_t n_iov);
	int (*udp_send)(struct worker *w, const struct port *port, struct mmsghdr *headers, uint32_t n);
	int (*udp_wait)(struct worker *w, const struct port *port);   /* the socket is full: wait briefly; 0 = try again */
};

struct worker {
	struct canal_dp *dp;
	struct canal_tables *tables;    /* of this batch */
	const struct io_ops *io;
	void *io_context;
	uint64_t now_ms;
	uint64_t born_ms;               /* when it ran first; 0: never */
	struct canal_ct *ct;
	struct frag_table *frags;
	struct notes *notes;            /* what policy denied, or logs */
	bool inserted;                  /* this batch made an entry: earlier lookups of it may be stale */
	bool stumbled;                  /* a read of this turn failed, and may fail again at once */
	struct coalescer coalescer;
	struct stall stall;
	uint32_t heads_used;
	uint32_t n_dirty;               /* sockets whose queue holds messages */
	uint32_t dirty[TX_SETS * TX_PORTS_MAX];
	uint8_t *tun_arena;             /* TUN_ARENA_BYTES */
	uint8_t *udp_arena;             /* DATAGRAMS_MAX buffers */
	uint8_t *heads;                 /* HEADS_BYTES */
	struct packet packets[CANAL_BATCH_MAX];
	struct iovec (*pieces)[PIECES_MAX];                /* one row a packet */
	struct segment segments[CANAL_SEGMENTS_MAX];
	struct datagram datagrams[DATAGRAMS_MAX];
	struct counters counters;
	_Atomic uint64_t errors[CANAL_CALLS][CANAL_ERRNO_MAX];   /* failed system calls */
};

struct canal_dp {
	struct canal_dp_config config;
	struct epoch epoch;
	struct events events;
	struct tx_set tx_sets[TX_SETS];
	struct worker *worker;
	int epoll_fd, wake_fd;
	_Atomic uint32_t stop, running, purge;   /* purge: ports wait to be forgotten by conntrack */
	_Atomic uint32_t ct_entries, frag_entries, queued;
	_Atomic uint32_t host_target;   /* the host TUN, CANAL_TARGET_NONE when there is none */
	_Atomic uint64_t *hits;         /* config.rules_max, by rule; worker writes, any reads */
	uint32_t n_ports;               /* highest index in use + 1; control */
	uint32_t next_port;             /* where the search for a free row starts: rows are reused late; control */
	struct port *ports;             /* CANAL_PORTS_MAX */
};

static inline uint32_t tx_set_of(uint8_t encap, uint8_t family) { return (uint32_t)(encap * 2 + (family == 6)); }
static inline struct port *worker_port(struct worker *w, uint32_t target) { return &w->dp->ports[target & (CANAL_PORTS_MAX - 1)]; }
static inline bool target_is(uint32_t target, uint32_t kind) { return (target & CANAL_TARGET_KIND) == kind; }
static inline uint32_t target_plain(uint32_t target) { return target & (CANAL_TARGET_KIND | CANAL_TARGET_INDEX); }
static inline void stat_add(_Atomic uint64_t *stat, uint64_t n)
{
	atomic_store_explicit(stat, atomic_load_explicit(stat, memory_order_relaxed) + n, memory_order_relaxed);
}
static inline void worker_count(struct worker *w, enum canal_counter counter, uint64_t n) { w->counters.own.counter[counter] += n; }

static inline void worker_hit(struct worker *w, uint32_t rule)
{
	if (rule < w->dp->config.rules_max)
		stat_add(&w->dp->hits[rule], 1);
}

/* The end of a packet that goes no further. */
static inline void worker_drop(struct worker *w, const struct packet *p, enum canal_drop reason)
{
	w->counters.own.drop[reason] += p->vnet.segments;
	if (target_is(p->in, CANAL_TARGET_PORT))
		stat_add(&worker_port(w, p->in)->stats.drops, p->vnet.segments);
}

/* The time of this turn; lookups go by it. */
void worker_clock(struct worker *w, uint64_t now_ms);
struct worker *worker_new(struct canal_dp *dp);
void worker_free(struct worker *w);
void worker_event(struct worker *w, enum canal_event_kind kind, const struct port *port, const uint8_t *addr, uint32_t value);
#endif
