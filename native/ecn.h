/* ecn.h - RFC 6040 on decapsulation, RFC 3168 bits; see ecn.c. */
#ifndef CANAL_ECN_H
#define CANAL_ECN_H
#include "packet.h"

/* Combine the outer TOS into the inner packet (in place, IPv4 header checksum updated, flow.tos too).
 * Returns CANAL_DROP_ECN for CE outside and Not-ECT inside. */
enum canal_drop ecn_decap(struct packet *p, uint8_t outer_tos);
/* Outer TOS for this inner TOS: ECN copied, DSCP 0. */
static inline uint8_t ecn_encap(uint8_t inner_tos) { return inner_tos & 3; }
#endif
