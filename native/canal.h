/*
 * canal.h - THE boundary: every struct, enum and function that Python can see.
 *
 * Place:      gcc includes this file; build_ffi.py hands the region between the two cdef marks to ffi.cdef. Nothing here is
 *             written a second time anywhere: numpy dtypes, enum names and struct sizes are derived from it (canal_udp/_abi.py).
 * Structure:  limits, enums, tables (input of the snapshot), data path (life, ports, worker, looking in), stages in batch form.
 * Invariants: arrays in, arrays out; (pointer, count) adjacent; order object, inputs, outputs. Inputs are copied inside the call,
 *             C keeps no pointer into Python's memory. C never calls Python and never prints.
 *             A function returns >= 0 (a count, an index, or CANAL_OK) or one of enum canal_err; *fault says which input row.
 * Threads:    said at each function: control (one thread at a time), worker (the thread inside canal_worker_run), any.
 * Limits:     addresses are 16 bytes, network order, IPv4 as ::ffff:a.b.c.d. _be = network order. Sizes are bytes.
 *
 *   memory               allocated by   freed by                         C keeps the pointer after the call?
 *   input arrays         Python         Python                           no: copied
 *   output arrays        Python         Python                           no
 *   canal_tables         C (build)      canal_tables_free, or by the     yes, once published (the data path owns it then)
 *                                       data path when reclaimed
 *   canal_dp, canal_ct   C (new)        canal_dp_free, canal_ct_free     yes
 *   fds                  Python         Python, after canal_port_del     borrowed between port_add and port_del
 */
#ifndef CANAL_H
#define CANAL_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define CANAL_ABI_VERSION 1
#define CANAL_BATCH_MAX 64        /* packets handled together                                                    */
#define CANAL_PACKET_MAX 65535    /* bytes of one packet or superpacket                                          */
#define CANAL_HEADROOM 128        /* bytes free before every packet in an arena: outer header + vnet header      */
#define CANAL_SEGMENTS_MAX 128    /* segments of one superpacket that one send may hold                          */
#define CANAL_PORTS_MAX 4096      /* ports of one data path                                                      */
#define CANAL_VNET_HDR_SIZE 10    /* struct virtio_net_hdr, the size that TUN uses unless told otherwise         */

/* A target says where a packet comes from or goes to: kind | flags | index. 0 = none. */
#define CANAL_TARGET_NONE 0
#define CANAL_TARGET_PORT 0x10000000     /* index = port (pod or host TUN)                                       */
#define CANAL_TARGET_VTEP 0x20000000     /* index = row of the snapshot's vteps                                  */
#define CANAL_TARGET_REJECT 0x30000000   /* answer unreachable: an overlay address that nobody leases            */
#define CANAL_TARGET_KIND 0x70000000     /* mask                                                                 */
#define CANAL_TARGET_LOCAL 0x08000000    /* flag: this node's own subnet or address; a peer may send to it       */
#define CANAL_TARGET_INDEX 0x000fffff    /* mask                                                                 */

enum canal_err {
	CANAL_OK = 0,
	CANAL_EINVAL = -1,   /* a value out of its domain                      */
	CANAL_ERANGE = -2,   /* an index beyond its table, or too many rows    */
	CANAL_ENOMEM = -3,
	CANAL_EBUSY = -4,    /* the worker runs, or the slot is taken          */
	CANAL_EDUP = -5,     /* two rows say the same prefix                   */
	CANAL_ESYS = -6      /* a system call failed: fault.sys_errno          */
};

enum canal_table { CANAL_TABLE_NODE = 0, CANAL_TABLE_VTEP = 1, CANAL_TABLE_FIB = 2, CANAL_TABLE_PORT = 3, CANAL_TABLE_CONFIG = 4,
                   CANAL_TABLE_RULE = 5, CANAL_TABLE_CLASS = 6, CANAL_TABLE_ROW = 7, CANAL_TABLE_VECTOR = 8, CANAL_TABLE_ENDPOINT = 9 };

enum canal_verdict { CANAL_DENY = 0, CANAL_ALLOW = 1 };
enum canal_end { CANAL_EGRESS = 0, CANAL_INGRESS = 1 };
enum canal_encap { CANAL_ENCAP_UDP = 0, CANAL_ENCAP_VXLAN = 1 };
enum canal_port_kind { CANAL_PORT_POD = 1, CANAL_PORT_HOST = 2, CANAL_PORT_UNDERLAY = 3 };

/* Packets, counted as the wire packets that a superpacket stands for. Conservation, at rest:
 * RX_POD + RX_HOST + RX_UNDERLAY + ORIGINATED == TX_POD + TX_HOST + TX_UNDERLAY + sum(drops) */
enum canal_counter {
	CANAL_RX_POD, CANAL_RX_HOST, CANAL_RX_UNDERLAY,
	CANAL_RX_POD_BYTES, CANAL_RX_HOST_BYTES, CANAL_RX_UNDERLAY_BYTES,
	CANAL_TX_POD, CANAL_TX_HOST, CANAL_TX_UNDERLAY,
	CANAL_TX_POD_BYTES, CANAL_TX_HOST_BYTES, CANAL_TX_UNDERLAY_BYTES,
	CANAL_ORIGINATED,          /* ICMP errors of our own                                                     */
	CANAL_RX_SUPERPACKETS,     /* reads that brought more than one packet                                    */
	CANAL_TX_SUPERPACKETS,     /* writes that carried more than one packet                                   */
	CANAL_FRAGMENTS_CREATED,   /* IPv4 fragments made of too big packets; not part of the conservation law   */
	CANAL_ICMP_LIMITED,        /* ICMP errors not sent because of the rate limit                             */
	CANAL_GSO_FALLBACK,        /* sockets that lost UDP_SEGMENT at run time                                  */
	CANAL_POLICY_MISSES,       /* packets that had to be judged, not found in conntrack                      */
	CANAL_SYSCALLS,            /* read, write, send, receive and wait calls of the worker                    */
	CANAL_WAKEUPS,             /* waits that slept                                                           */
	CANAL_COUNTERS
};

/* Exactly one per dropped packet. */
enum canal_drop {
	CANAL_DROP_NONE,           /* not dropped                                                                */
	CANAL_DROP_SHORT,          /* fewer bytes than the headers say                                           */
	CANAL_DROP_TOO_LONG,       /* a datagram longer than any packet                                          */
	CANAL_DROP_BAD_IP,         /* version, header length, total length, header checksum                      */
	CANAL_DROP_IP_OPTION,      /* a source route, or options that cannot be parsed                           */
	CANAL_DROP_BAD_EXT,        /* IPv6 extension headers: too many, truncated, wrong order, routing header 0 */
	CANAL_DROP_BAD_L4,         /* transport header truncated or impossible                                   */
	CANAL_DROP_BAD_GSO,        /* vnet header that lies                                                      */
	CANAL_DROP_BAD_CSUM,       /* inner checksum wrong                                                       */
	CANAL_DROP_BAD_VXLAN,      /* flags or reserved bits                                                     */
	CANAL_DROP_BAD_VNI,
	CANAL_DROP_BAD_ETHER,      /* inner Ethernet: wrong destination, own source, or not exactly IPv4 / IPv6  */
	CANAL_DROP_ECN,            /* RFC 6040: congestion on the way, inner cannot say so                       */
	CANAL_DROP_UNKNOWN_PEER,   /* the outer source is no VTEP                                                */
	CANAL_DROP_INNER_SRC,      /* a peer sent a source that it does not lease                                */
	CANAL_DROP_SPOOFED,        /* a pod sent a source that is not its own                                    */
	CANAL_DROP_MARTIAN,        /* multicast, broadcast, loopback, link-local, unspecified                    */
	CANAL_DROP_NOT_LOCAL,      /* a peer sent to an address that is not here                                 */
	CANAL_DROP_NO_ROUTE,
	CANAL_DROP_TTL,
	CANAL_DROP_TOO_BIG,        /* larger than the path's MTU, may not be fragmented                          */
	CANAL_DROP_FRAG_NO_FIRST,  /* a later fragment whose first one was not seen, or was denied               */
	CANAL_DROP_FRAG_OVERLAP,
	CANAL_DROP_FRAG_FULL,      /* fragment table full                                                        */
	CANAL_DROP_POLICY,         /* denied, and the sender is not told                                         */
	CANAL_DROP_REJECTED,       /* denied by a policy that says so to the sender                              */
	CANAL_DROP_CT_FULL,
	CANAL_DROP_CT_SHARE,       /* the pod has its share of the conntrack table in use                        */
	CANAL_DROP_CT_INVALID,     /* no packet that its flow could have sent                                    */
	CANAL_DROP_PORT_DOWN,      /* the port is gone or its device is down                                     */
	CANAL_DROP_TX_AGAIN,       /* EAGAIN, ENOBUFS: the kernel's queue is full                                */
	CANAL_DROP_TX_MSGSIZE,     /* EMSGSIZE: the path is narrower than believed; the MTU event follows        */
	CANAL_DROP_TX_ERROR,       /* any other errno                                                            */
	CANAL_DROPS
};

/* System calls of the worker that failed are counted by call and errno, whatever became of the packets. */
enum canal_call { CANAL_CALL_READ, CANAL_CALL_RECEIVE, CANAL_CALL_WRITE, CANAL_CALL_SEND, CANAL_CALLS };
#define CANAL_ERRNO_MAX 134          /* errno values are less                                                    */

enum canal_ct_state {
	CANAL_CT_NEW, CANAL_CT_REPLIED,   /* everything but TCP                                                  */
	CANAL_CT_SYN_SENT, CANAL_CT_SYN_RECV, CANAL_CT_ESTABLISHED, CANAL_CT_FIN_WAIT, CANAL_CT_CLOSING,
	CANAL_CT_TIME_WAIT, CANAL_CT_CLOSED,
	CANAL_CT_STATES
};

/* What canal_flow.flags says. */
#define CANAL_FLOW_DF 1              /* IPv4 don't fragment; always set for IPv6                                 */
#define CANAL_FLOW_FRAG 2            /* any fragment but an atomic one                                           */
#define CANAL_FLOW_LATER_FRAG 4      /* ... and not the first: no ports                                          */
#define CANAL_FLOW_MORE_FRAGS 8
#define CANAL_FLOW_ICMP_ERROR 16     /* quotes a packet: related to that one's flow                              */
#define CANAL_FLOW_OPTIONS 32        /* IPv4 options or IPv6 extension headers present                           */
#define CANAL_FLOW_REPLY 64          /* set by conntrack: against the direction of the flow's first packet       */

/* A packet's identity and shape, as parse.c read it from untrusted bytes. */
struct canal_flow {
	uint8_t src[16];
	uint8_t dst[16];
	uint16_t sport_be;       /* ICMP echo: identifier, both; other ICMP and unknown protocols: 0               */
	uint16_t dport_be;
	uint8_t proto;           /* IPPROTO_*, after extension headers                                             */
	uint8_t family;          /* 4 or 6                                                                         */
	uint8_t flags;           /* CANAL_FLOW_*                                                                   */
	uint8_t tos;             /* DSCP and ECN                                                                   */
	uint8_t ttl;             /* hop limit                                                                      */
	uint8_t tcp_flags;       /* FIN 1 SYN 2 RST 4 PSH 8 ACK 16 URG 32 ECE 64 CWR 128                           */
	uint8_t icmp_type;
	uint8_t icmp_code;
	uint16_t l4_offset;      /* bytes from the IP header's start; for a later fragment, of its payload         */
	uint16_t l4_size;        /* bytes of the transport header; 0 where there is none                           */
	uint32_t total_size;     /* bytes of the IP packet as its header says, <= bytes received                   */
	uint32_t frag_id;        /* host order; IPv4 identification, or IPv6 fragment identification               */
	uint16_t frag_offset;    /* bytes                                                                          */
	uint16_t drop;           /* enum canal_drop; CANAL_DROP_NONE when everything above is valid                */
};

/* ---- tables: the input of one snapshot --------------------------------------------------------------------------------- */

struct canal_node {
	uint8_t router4[16];     /* source of our own ICMP errors (v4-mapped); all zero: send none                 */
	uint8_t router6[16];
	uint8_t mac[6];          /* VTEP MAC of this node                                                          */
	uint8_t policy_default;  /* enum canal_verdict: what the policy stage says while no policy is loaded       */
	uint8_t pad;
	uint32_t vni;
	uint32_t mss_clamp;      /* 0: leave TCP's MSS alone                                                       */
};

struct canal_vtep {
	uint8_t addr[16];        /* underlay address                                                               */
	uint16_t port_be;
	uint16_t mtu_bytes;      /* largest inner packet                                                           */
	uint8_t mac[6];          /* VXLAN: inner destination MAC                                                   */
	uint8_t encap;           /* enum canal_encap                                                               */
	uint8_t family;          /* of addr: 4 or 6                                                                */
	uint32_t id;             /* chosen by Python, repeated in events                                           */
};

struct canal_fib_entry {
	uint8_t prefix[16];      /* host bits zero                                                                 */
	uint8_t family;          /* 4 or 6                                                                         */
	uint8_t plen;            /* 0..32 or 0..128                                                                */
	uint16_t pad;
	uint32_t target;
};

struct canal_fault { int32_t code; int32_t table; uint32_t row; uint32_t field; int32_t sys_errno; };

struct canal_tables;
struct canal_dp;
struct canal_ct;

/* Copy, check and freeze. thread: any. On error *out is NULL and *fault says which row. */
int canal_tables_build(const struct canal_node *node, const struct canal_vtep *vteps, size_t n_vteps,
                       const struct canal_fib_entry *fib, size_t n_fib, uint64_t generation,
                       struct canal_tables **out, struct canal_fault *fault);
/* Free a snapshot that was never published. */
void canal_tables_free(struct canal_tables *tables);
/* addrs: n * 16 bytes. targets: n. thread: any. */
int canal_fib_lookup(const struct canal_tables *tables, const uint8_t *addrs, size_t n, uint32_t *targets);

/* ---- data path ----------------------------------------------------------------------------------------------------------- */

#define CANAL_DP_STRICT_CSUM 1     /* verify the inner checksum also where the outer one is known to cover it     */
#define CANAL_DP_NO_UDP_GSO 2      /* what the self-test found, or the user asked for                             */
#define CANAL_DP_NO_COALESCE 4
#define CANAL_DP_NO_USO_WRITE 8    /* the kernel does not take UDP superpackets from a TUN                        */
#define CANAL_DP_RESET_CUT 16      /* a flow that a new policy cuts is reset, whatever the policy says of denied ones   */

struct canal_dp_config {
	uint64_t seed[2];            /* key of the flow hash                                                       */
	uint32_t flags;              /* CANAL_DP_*                                                                 */
	uint32_t ct_max;             /* conntrack entries                                                          */
	uint32_t ct_share;           /* entries that one port may own                                              */
	uint32_t frag_max;           /* fragment table entries                                                     */
	uint32_t busy_poll_us;       /* poll this long after the last packet before sleeping                       */
	uint32_t icmp_per_s;         /* ICMP errors per second to each port                                        */
	uint32_t gso_segments_max;   /* segments that UDP_SEGMENT takes: 64 before Linux 6.10, else 128            */
	uint32_t rules_max;          /* rules whose hits are counted                                               */
};

#define CANAL_PORT_TX_ONLY 1       /* an underlay socket for source port entropy: never read                     */

struct canal_port_config {
	int32_t fd;                  /* non-blocking                                                               */
	uint8_t kind;                /* enum canal_port_kind                                                       */
	uint8_t encap;               /* underlay: enum canal_encap                                                 */
	uint8_t family;              /* underlay: 4 or 6                                                           */
	uint8_t flags;               /* CANAL_PORT_*                                                               */
	uint16_t mtu_bytes;          /* TUN: of the device                                                         */
	uint16_t pad;
	uint32_t id;                 /* chosen by Python, repeated in events and flows                             */
};

struct canal_port_stats {
	uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes, drops;   /* drops: of packets that came in here      */
	uint32_t id, flows, in_use, gso_off;
};

enum canal_event_kind {
	CANAL_EVENT_MTU = 1,          /* value = bytes of the largest outer packet to addr                        */
	CANAL_EVENT_GSO_FALLBACK = 2, /* port lost UDP_SEGMENT; value = errno                                     */
	CANAL_EVENT_PORT_ERROR = 3,   /* port's fd failed; value = errno                                          */
	CANAL_EVENT_LOST = 4,         /* value = events that did not fit the ring                                 */
	CANAL_EVENT_STALLED = 5       /* a flow to addr sends large packets again: does the path carry them?      */
};
struct canal_event { uint8_t addr[16]; uint32_t kind; uint32_t id; uint32_t value; uint32_t port; };

struct canal_flow_info {
	uint8_t src[16], dst[16];     /* of the original direction                                                */
	uint16_t sport_be, dport_be;
	uint8_t proto, family, state, verdict;
	uint32_t in_target, out_target;   /* of the original direction                                            */
	uint32_t rule[2];             /* what the ends said: enum canal_end; 0: that end has no policy here        */
	uint64_t packets[2], bytes[2];    /* original, reply                                                      */
	uint64_t generation;
	uint32_t age_ms, idle_ms, expires_ms, pad;
};

/* What policy says of a flow; each end by itself. */
struct canal_judgement {
	uint8_t verdict;          /* enum canal_verdict                                                           */
	uint8_t reject;           /* denied, and the sender shall know                                            */
	uint8_t end;              /* enum canal_end that denied                                                   */
	uint8_t pad;
	uint32_t rule[2];         /* enum canal_end -> rule that decided; 0: that end has no policy here          */
	uint32_t log[2];          /* ... the last rule before it that asks for a note, or 0                       */
};

/* A flow that policy denied, or that a rule asks to log. */
struct canal_note {
	uint8_t src[16], dst[16];     /* of its first packet                                                      */
	uint16_t sport_be, dport_be;
	uint8_t proto, family, icmp_type, icmp_code;
	uint8_t verdict, reject, end, pad;    /* as struct canal_judgement                                        */
	uint32_t rule[2], log[2];
	uint32_t in_target;           /* where the last packet came in                                            */
	uint64_t packets, bytes;      /* that were judged                                                         */
	uint64_t first_ms, last_ms;   /* the worker's clock                                                       */
};

struct canal_status {
	uint64_t generation;          /* of the snapshot that the worker uses                                     */
	uint64_t published;           /* snapshots so far                                                         */
	uint32_t retired;             /* snapshots not yet reclaimed                                              */
	uint32_t running;             /* workers inside canal_worker_run                                          */
	uint32_t ct_entries, ct_max;
	uint32_t frag_entries, ports;
	uint32_t queued, gso_off;     /* packets held by the worker now; sockets in fallback                      */
};

int canal_abi_version(void);
const char *canal_strerror(int err);
/* "avx512", "avx2" or "scalar": what csum and lookups use on this CPU. */
const char *canal_isa(void);

int canal_dp_new(const struct canal_dp_config *config, struct canal_dp **out, struct canal_fault *fault);
/* thread: control, after the worker returned (else CANAL_EBUSY). Closes no fd that Python owns. */
int canal_dp_free(struct canal_dp *dp);
/* Make `tables` what every batch after this sees, and own them. thread: control. Never blocks. */
int canal_dp_publish(struct canal_dp *dp, struct canal_tables *tables);
/* Free the snapshots that no worker can still see; returns how many remain. thread: control. */
int canal_dp_reclaim(struct canal_dp *dp);
/* Returns the port's index. thread: control. */
int canal_port_add(struct canal_dp *dp, const struct canal_port_config *config, struct canal_fault *fault);
/* After this returns the worker does not touch the fd. thread: control; waits for the worker's current batch. */
int canal_port_del(struct canal_dp *dp, uint32_t port);
/* counters: CANAL_COUNTERS, drops: CANAL_DROPS. thread: any. */
int canal_counters_read(struct canal_dp *dp, uint64_t *counters, uint64_t *drops);
/* errors: CANAL_CALLS rows of CANAL_ERRNO_MAX. thread: any. */
int canal_errors_read(struct canal_dp *dp, uint64_t *errors);
/* stats: one row a port index, n of them. Returns the highest index in use + 1. thread: any. */
int canal_ports_read(struct canal_dp *dp, struct canal_port_stats *stats, size_t n);
/* Copy the flows from *cursor on; returns how many, sets *cursor (0 = done). thread: control. */
int canal_flows_read(struct canal_dp *dp, uint32_t *cursor, struct canal_flow_info *flows, size_t n);
int canal_events_fd(struct canal_dp *dp);
int canal_events_read(struct canal_dp *dp, struct canal_event *events, size_t n);
int canal_status_read(struct canal_dp *dp, struct canal_status *status);
/* hits: n, from rule `first` on: flows that it let begin, packets that it denied. thread: any. */
int canal_hits_read(struct canal_dp *dp, uint32_t first, uint64_t *hits, size_t n);
/* Copy the notes of flows that were seen after since_ms, in no order; returns how many. *now_ms: the worker's clock. thread: any. */
int canal_notes_read(struct canal_dp *dp, uint64_t since_ms, struct canal_note *notes, size_t n, uint64_t *now_ms);
/* Forward until stopped. Blocks; call without the GIL (cffi does). thread: its own. */
int canal_worker_run(struct canal_dp *dp, uint32_t worker, struct canal_fault *fault);
/* thread: any; also from a signal handler. */
int canal_worker_stop(struct canal_dp *dp);

/* ---- stages in batch form: the code that the worker runs, without I/O ------------------------------------------------------ */

/* Where a packet lies in a buffer. */
struct canal_span { uint32_t offset; uint32_t size; };

/* One virtio_net_hdr, in host order, after validation. */
struct canal_vnet {
	uint8_t needs_csum;       /* the transport checksum holds the pseudo-header sum only                      */
	uint8_t gso_type;         /* 0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4 (VIRTIO_NET_HDR_GSO_*)                    */
	uint16_t gso_size;        /* transport payload bytes of each segment but the last                         */
	uint16_t csum_start;      /* bytes from the IP header's start                                             */
	uint16_t csum_offset;
	uint16_t hdr_size;        /* IP + transport header bytes; derived, never believed                         */
	uint16_t segments;        /* wire packets that it stands for, >= 1                                        */
};

/* Read n packets. flows[i].drop says what was wrong. thread: any. */
int canal_parse(const uint8_t *bytes, const struct canal_span *spans, size_t n, struct canal_flow *flows);
/* Check a raw virtio_net_hdr against a parsed packet. Returns enum canal_drop. thread: any. */
int canal_vnet_check(const uint8_t *hdr, const struct canal_flow *flow, struct canal_vnet *vnet);
/* Cut one superpacket (or finish the checksum of a plain packet) into wire packets laid one after the other in out.
 * Returns how many, or CANAL_ERANGE when out or spans is too small. thread: any. */
int canal_segment(const uint8_t *packet, uint32_t size, const struct canal_vnet *vnet,
                  uint8_t *out, size_t out_size, struct canal_span *spans, size_t n_spans);
/* Join wire packets (each a valid one) into superpackets, in order, laid one after the other in out, each with its vnet.
 * Returns how many. thread: any. */
int canal_coalesce(const uint8_t *bytes, const struct canal_span *spans, size_t n, uint32_t flags,
                   uint8_t *out, size_t out_size, struct canal_span *out_spans, struct canal_vnet *out_vnets, size_t n_out);
/* Write the outer payload (all after UDP) of n packets for vteps[which[i]]; each takes size + overhead bytes of out. thread: any. */
int canal_encap_batch(const struct canal_tables *tables, const uint8_t *bytes, const struct canal_span *spans,
                const uint32_t *which, size_t n, uint8_t *out, size_t out_size, struct canal_span *out_spans);
/* Strip it again: inner[i] is the inner packet inside bytes; drops[i] an enum canal_drop. thread: any. */
int canal_decap_batch(const struct canal_tables *tables, uint32_t encap, const uint8_t *bytes, const struct canal_span *spans, size_t n,
                struct canal_span *inner, uint16_t *drops);

/* A conntrack table by itself. now_ms is the caller's. results[i]: < 0 an enum canal_drop negated, else CANAL_CT_HIT | ... */
#define CANAL_CT_HIT 1
#define CANAL_CT_INSERTED 2
#define CANAL_CT_IS_REPLY 4
int canal_ct_new(uint32_t max, uint32_t share, const uint64_t *seed, struct canal_ct **out);
void canal_ct_free(struct canal_ct *ct);
/* Look n flows up without changing anything. thread: any, one at a time. */
int canal_ct_find(struct canal_ct *ct, const struct canal_flow *flows, size_t n, int32_t *results);
/* Look up, insert what is new (owner[i] = port index, verdict allow), advance the state. */
int canal_ct_track(struct canal_ct *ct, const struct canal_flow *flows, const uint32_t *owner, size_t n, uint64_t now_ms, int32_t *results);
/* Expire; looks at up to n entries. Returns how many it freed. */
int canal_ct_sweep(struct canal_ct *ct, uint64_t now_ms, uint32_t n);
int canal_ct_count(const struct canal_ct *ct);
int canal_ct_read(struct canal_ct *ct, uint64_t now_ms, uint32_t *cursor, struct canal_flow_info *flows, size_t n);

/* One frame in or out of the whole pipeline. */
struct canal_frame {
	uint32_t port;            /* in: where it came from; out: TUN port, or underlay socket port               */
	uint32_t offset;          /* in the buffer; TUN frames start with a virtio_net_hdr of CANAL_VNET_HDR_SIZE */
	uint32_t size;
	uint16_t gso_size;        /* underlay: UDP_SEGMENT / UDP_GRO size, 0 = none                               */
	uint8_t tos;              /* underlay: outer TOS                                                          */
	uint8_t pad;
	uint8_t addr[16];         /* underlay: the other side                                                     */
	uint16_t port_be;         /* underlay: the other side's UDP port                                          */
	uint16_t pad2;
};
/* Run frames through the whole pipeline as worker 0 would, with time now_ms and no system call; what would be written lies in
 * out. Returns the number of out frames. thread: control, while the worker does not run. */
int canal_process(struct canal_dp *dp, const uint8_t *bytes, const struct canal_frame *in, size_t n, uint64_t now_ms,
                  uint8_t *out, size_t out_size, struct canal_frame *out_frames, size_t n_out);

/* ---- classifier: five fields -> the first rule that holds ----------------------------------------------------------------- */

#define CANAL_RULES_MAX 1048576
#define CANAL_RULE_ANY_PROTO 1    /* whatever proto says                                                          */

struct canal_rule {
	uint8_t src[16], dst[16]; /* prefixes, host bits zero                                                     */
	uint16_t sport_lo, sport_hi, dport_lo, dport_hi;   /* host order, both ends included; a packet without ports has 0 */
	uint8_t src_plen, dst_plen;   /* 0..32 or 0..128                                                          */
	uint8_t family;           /* 4, 6, or 0: both, with empty prefixes of all zeros                           */
	uint8_t proto;
	uint32_t flags;           /* CANAL_RULE_*                                                                 */
};

struct canal_classifier;

/* Check, copy and freeze; an earlier rule goes before a later one. CANAL_ERANGE: too many rules, or too many that overlap.
 * thread: any. On error *out is NULL and *fault says which row. */
int canal_classifier_build(const struct canal_rule *rules, size_t n, struct canal_classifier **out, struct canal_fault *fault);
void canal_classifier_free(struct canal_classifier *classifier);
/* rows[i]: the first rule that holds for flows[i], or the number of rules. thread: any. */
int canal_classify(const struct canal_classifier *classifier, const struct canal_flow *flows, size_t n, uint32_t *rows);

/* ---- policy: who may talk to whom; a part of the snapshot ------------------------------------------------------------------
 *
 *   classes    address -> what all rules together can see of it: one number for all addresses that no rule tells apart
 *   program    rows in the order in which they are asked, for all endpoints and one direction that the same policies govern
 *   policy     classes, programs, and which endpoint has which
 *
 * Each is immutable and counted: who builds it holds it and releases it, a policy holds its parts, a snapshot its policy.
 * thread: any, but a snapshot is the control thread's. */

#define CANAL_CLASSES_MAX 1048576
#define CANAL_CLASS_NODE 1        /* an address of this node: what comes from it by the host port reaches every pod of ours */
#define CANAL_PROGRAM_NONE 0xffffffff   /* no program: nothing passes                                            */
#define CANAL_NO_POD 0xffffffff

enum canal_action { CANAL_ACTION_DENY = 0, CANAL_ACTION_ALLOW = 1, CANAL_ACTION_REJECT = 2, CANAL_ACTION_PASS = 3, CANAL_ACTION_LOG = 4 };

/* Holds for a packet when its addresses' classes have the row's bit and its numbers lie in the ranges, both ends included.
 * ICMP: the source port is 0, the destination port type << 8 | code. Protocols without ports have 0. */
struct canal_row {
	uint16_t sport_lo, sport_hi, dport_lo, dport_hi;   /* host order                                           */
	uint8_t proto_lo, proto_hi;
	uint8_t action;           /* enum canal_action; LOG goes on with the next row                             */
	uint8_t pad;
	uint32_t rule;            /* chosen by Python, 0 = none; repeated in verdicts                             */
	uint32_t next;            /* PASS: the row to go on with, beyond this one                                 */
};

struct canal_endpoint {
	uint32_t port;            /* of a pod                                                                     */
	uint32_t program[2];      /* enum canal_end -> index, or CANAL_PROGRAM_NONE                               */
};

/* A packet on its way, as policy asks for it. */
struct canal_way {
	uint32_t source_pod, destination_pod;   /* ports of the pods of ours that have its addresses, or CANAL_NO_POD */
	uint32_t from_host;                     /* it came in by the host port                                    */
};

struct canal_classes;
struct canal_program;
struct canal_policy;

/* Targets are classes < n_classes; flags: n_classes, CANAL_CLASS_*. An address is looked for among `addresses`, then among those of
 * `base` (or NULL), whose prefixes do not count, then the longest of `prefixes` decides. */
int canal_classes_build(const struct canal_classes *base, const struct canal_fib_entry *addresses, size_t n,
                        const struct canal_fib_entry *prefixes, size_t n_prefixes, const uint32_t *flags, size_t n_classes,
                        struct canal_classes **out, struct canal_fault *fault);
void canal_classes_release(struct canal_classes *classes);
/* found[i]: the class of addrs + 16 * i, CANAL_CLASSES_MAX or more where there is none. */
int canal_classes_find(const struct canal_classes *classes, const uint8_t *addrs, size_t n, uint32_t *found);
/* vectors: n_vectors * ((n_rows + 63) / 64) words, a bit for each row. src, dst: class -> vector, n_classes each. */
int canal_program_build(const struct canal_row *rows, size_t n_rows, const uint64_t *vectors, size_t n_vectors,
                        const uint32_t *src, const uint32_t *dst, size_t n_classes, struct canal_program **out, struct canal_fault *fault);
/* The same rows and vectors for other classes: cheap. */
int canal_program_reclass(const struct canal_program *program, const uint32_t *src, const uint32_t *dst, size_t n_classes,
                          struct canal_program **out, struct canal_fault *fault);
void canal_program_release(struct canal_program *program);
/* An endpoint that is not listed has no program. to_host: what a pod's own policy allowed towards an address of this node, once more. */
int canal_policy_build(struct canal_classes *classes, struct canal_program *const *programs, size_t n_programs,
                       const struct canal_endpoint *endpoints, size_t n_endpoints, uint32_t to_host,
                       struct canal_policy **out, struct canal_fault *fault);
void canal_policy_hold(struct canal_policy *policy);
void canal_policy_release(struct canal_policy *policy);
/* Give a snapshot that is not published yet its policy; without one the node's default holds. */
int canal_tables_set_policy(struct canal_tables *tables, struct canal_policy *policy);
/* The verdicts on the first packets of n flows: the code that the worker runs. */
int canal_policy_judge(const struct canal_policy *policy, const struct canal_flow *flows, const struct canal_way *ways, size_t n,
                       struct canal_judgement *found);
/* cdef: end */

#endif
