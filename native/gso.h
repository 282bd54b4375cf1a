/* gso.h - one superpacket -> wire packets; see gso.c. */
#ifndef CANAL_GSO_H
#define CANAL_GSO_H
#include "packet.h"

/* One wire packet of a superpacket: headers of its own (in the caller's arena, `headroom` free bytes before them), payload where it
 * was received. */
struct segment {
	uint8_t *head;
	const uint8_t *payload;
	uint32_t head_size;
	uint32_t payload_size;
};

/* Cut `p` (linear, parsed, vnet checked) into segments whose checksums, lengths, IP ids and TCP flags are final (TSO / USO semantics:
 * id + 1 a segment, seq advances, FIN and PSH only on the last, CWR only on the first).
 * heads: arena of heads_size bytes; each head takes gso_stride(p, headroom). Also works for GSO_NONE with a payload: one segment.
 * Returns the count, or 0 when the arena or out[max] is too small. */
uint32_t gso_segment(const struct packet *p, uint32_t headroom, uint8_t *heads, size_t heads_size, struct segment *out, uint32_t max);
/* Bytes of arena that one segment's head takes: headroom + headers, rounded up to 16. */
uint32_t gso_stride(const struct packet *p, uint32_t headroom);
/* Finish the partial transport checksum of a linear packet in place (UDP 0 -> 0xffff). No-op without needs_csum. */
void gso_finish_csum(struct packet *p);
/* Strict mode: is the transport checksum of this linear packet right, or exactly the pseudo-header sum (partial)? True for protocols
 * without one and for UDP/IPv4 with zero. */
bool gso_verify_csum(const struct packet *p);
/* Turn a full or partial transport checksum of a TCP or UDP packet (linear head, maybe pieces) into the pseudo-header sum and set
 * vnet.needs_csum, csum_start, csum_offset: TUN will trust it. Leaves fragments, UDP/IPv4 with zero, and other protocols alone. */
void gso_make_partial(struct packet *p);
#endif
