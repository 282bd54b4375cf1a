/* conntrack.h - the flow table; see conntrack.c. */
#ifndef CANAL_CONNTRACK_H
#define CANAL_CONNTRACK_H
#include "packet.h"

/* One flow, both directions; the key is symmetric, so one lookup serves original and reply. 128 bytes, two cache lines: what a hit
 * reads first (key, generation, targets, state), what it only counts second. */
struct ct_entry {
	/* line 0: read by every packet */
	uint8_t addr[2][16];         /* the two ends in canonical order                                    */
	uint16_t port_be[2];
	uint8_t proto;
	uint8_t family;
	uint8_t original;            /* 0 or 1: which end sent the first packet                            */
	uint8_t state;               /* enum canal_ct_state                                                */
	uint32_t generation;         /* low bits of the snapshot's under which it was judged               */
	uint32_t in[2];              /* target where packets of [original, reply] come in; 0 = not seen yet */
	uint32_t out[2];             /* target where packets of [original, reply] go out; 0 = not routed yet */
	uint32_t expires_ms;         /* low 32 bits of the clock */
	/* line 1 */
	uint64_t packets[2];         /* original, reply */
	uint64_t bytes[2];
	uint32_t created_ms, seen_ms;   /* low 32 bits of the clock */
	uint32_t rule[2];            /* enum canal_end -> what decided                                      */
	uint32_t owner;              /* port index whose share it takes, CT_NO_OWNER */
	uint8_t verdict;
	uint8_t closer;              /* TCP: 0 or 1, which direction sent the first FIN                    */
	uint8_t from_host;           /* the first packet came in by the host port: replies go back there    */
	uint8_t icmp_type, icmp_code;   /* of the first packet                                              */
	uint8_t pad[3];
	uint32_t next_free;          /* CT_IN_USE, or the next free entry                                  */
};
enum { CT_NO_OWNER = 0xffffffff };

struct canal_ct;                 /* canal_ct_new / canal_ct_free in canal.h */

/* Set hash, ct and flow.flags & CANAL_FLOW_REPLY of each packet; prefetches across the batch. ct is NULL for packets with flow.drop, later
 * fragments, ICMP errors, flows whose time is over, a SYN that re-opens a closed flow, an ICMP message of another kind: those are new ones.
 * Changes nothing in the table, and knows the time of the last ct_insert, ct_update or canal_ct_sweep only. An entry is good until the next insert or sweep.
 * All fragments between two ends have the same hash, with or without ports: they must not overtake each other. */
void ct_lookup(struct canal_ct *ct, struct packet *const *packets, size_t n);
/* Keyed hash of a flow, equal for both directions. */
uint32_t ct_hash(const struct canal_ct *ct, const struct canal_flow *flow);
/* The flow that an ICMP error belongs to, by the packet that it quotes, or NULL. When the quoted packet is of the original direction,
 * the error itself travels as a reply. */
struct ct_entry *ct_find_related(struct canal_ct *ct, const struct canal_flow *quoted, bool *quoted_is_reply);
/* Make the entry of p's flow (p is original). NULL and *drop = CANAL_DROP_CT_FULL, _CT_SHARE or _CT_INVALID (a TCP RST or FIN that
 * opens nothing is CT_INVALID; any other mid-stream TCP packet picks its flow up, so that a restarted daemon interrupts nobody).
 * When the table is full, or the owner's share of it, an entry that never saw a reply (or is half-open, or closed) is evicted after a
 * bounded search. A flow that is there
 * already is returned as it is. The packet itself is not counted: call ct_update. */
struct ct_entry *ct_insert(struct canal_ct *ct, const struct packet *p, uint32_t owner, uint64_t now_ms, enum canal_drop *drop);
/* Count p (vnet.segments packets, total bytes) in its direction and advance state and timeout. Returns CANAL_DROP_NONE or _CT_INVALID. */
enum canal_drop ct_update(struct canal_ct *ct, struct ct_entry *entry, const struct packet *p, uint64_t now_ms);
/* Forget one flow; forget all flows with this port index as owner or target. */
void ct_remove(struct canal_ct *ct, struct ct_entry *entry);
uint32_t ct_remove_port(struct canal_ct *ct, uint32_t port);
#endif
