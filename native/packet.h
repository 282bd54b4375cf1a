/*
 * packet.h - a packet in hand, on its way through the stages.
 *
 * Place:      every stage takes a struct packet; no stage knows another stage.
 * Structure:
 *
 *     headroom (CANAL_HEADROOM)   data                    data + size        pieces[0..n_pieces)
 *     |  outer header goes here   |  IP | L4 | payload ...|  ...gathered:    payload of the coalesced segments, where it was received
 *
 *             total = size + sum(pieces[].iov_len) = bytes of the IP packet (superpacket)
 *
 * Invariants: after parse_packet() returned CANAL_DROP_NONE, flow.total_size <= bytes received, and l4_offset + l4_size <= size.
 *             Packets with pieces come only from coalesce.c (ingress) and only go to a TUN.
 * Threads:    owned by one worker.
 */
#ifndef CANAL_PACKET_H
#define CANAL_PACKET_H

#include <stdbool.h>
#include <sys/uio.h>

#include "canal.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

enum { GSO_NONE = 0, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5, GSO_ECN = 0x80 };   /* VIRTIO_NET_HDR_GSO_* */
enum { PIECES_MAX = 128 };     /* segments that one superpacket may gather */

struct ct_entry;

struct packet {
	uint8_t *data;             /* first byte of the IP header                                   */
	uint32_t size;             /* bytes at data                                                 */
	uint32_t total;            /* bytes of the packet with its pieces                           */
	struct iovec *pieces;      /* payload after data[size), or NULL                             */
	uint32_t n_pieces;
	uint32_t hash;             /* same for both directions of a flow, and for all fragments      */
	uint32_t in;               /* target it came from                                           */
	uint32_t out;              /* target it goes to                                             */
	struct ct_entry *ct;       /* its flow, or NULL                                             */
	struct canal_vnet vnet;
	struct canal_flow flow;
};

/* Unaligned network-order access: the only way C code here reads or writes header fields. */
static inline uint16_t load_be16(const uint8_t *p) { return (uint16_t)((uint16_t)p[0] << 8 | p[1]); }
static inline uint32_t load_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static inline void store_be16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
static inline void store_be32(uint8_t *p, uint32_t v) { store_be16(p, v >> 16); store_be16(p + 2, v & 0xffff); }

#endif
