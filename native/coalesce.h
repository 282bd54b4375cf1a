/* coalesce.h - wire packets -> superpackets, per flow and in order; see coalesce.c. */
#ifndef CANAL_COALESCE_H
#define CANAL_COALESCE_H
#include "packet.h"

enum { COALESCE_OPEN_MAX = 16 };

/* The superpackets that may still grow. open[] in the order of their first packet. */
struct coalescer {
	struct packet *open[COALESCE_OPEN_MAX];
	uint32_t n_open;
	bool udp;                       /* the TUN takes UDP superpackets */
};

/* May `next` be appended to `super`? Same flow, consecutive (seq, or equal-size datagrams), same TTL, TOS, DF, IP id + 1, options and
 * ack equal, no flag but PSH/ACK, super not closed by a short segment or PSH; so that segmenting the result gives the same bytes. */
bool coalesce_fits(const struct packet *super, const struct packet *next);
/* Append (pieces only: no byte is copied). super->pieces must have room for PIECES_MAX. */
void coalesce_append(struct packet *super, const struct packet *next);
/* Write lengths into the head, set vnet (gso_type, gso_size, segments, hdr_size; needs_csum by pseudo sum). Once, after the last append.
 * A packet that nothing was appended to stays as it is. */
void coalesce_finish(struct packet *super);
/* Offer `p` (linear, parsed, with hash; vnet.segments == 1). Returns true when it was merged into an open superpacket (the caller drops
 * its reference to p). Else p itself became open, and *closed[0..*n_closed) are packets (<= 2) that must now be emitted, in that order,
 * before p: those of the same flow that p could not join, or the oldest when the table is full. */
bool coalesce_offer(struct coalescer *c, struct packet *p, struct packet *closed[2], uint32_t *n_closed);
/* Close all, in order; returns how many were written to closed[COALESCE_OPEN_MAX]. */
uint32_t coalesce_flush(struct coalescer *c, struct packet *closed[]);
#endif
