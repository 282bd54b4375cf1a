/* fragment.h - verdicts for later fragments; cutting what is too big; see fragment.c. */
#ifndef CANAL_FRAGMENT_H
#define CANAL_FRAGMENT_H
#include "packet.h"

struct frag_table;
struct frag_table *frag_new(uint32_t max, const uint64_t seed[2]);
void frag_free(struct frag_table *t);

/* What is remembered of a datagram's first fragment: where it went, under which snapshot, and what the later ones do not say. */
struct frag_verdict {
	uint64_t generation;
	uint32_t out;
	uint16_t sport_be, dport_be;
	uint8_t proto, icmp_type, icmp_code;
};

/* Register any fragment's byte range. For a later fragment: fills *verdict with what frag_remember() stored for (src, dst, id, proto, in).
 * Returns CANAL_DROP_NONE, _FRAG_OVERLAP (this and all further fragments of that datagram), _FRAG_NO_FIRST, _FRAG_FULL.
 * A duplicate, or any fragment that adds no byte, counts as overlap but is dropped alone. Tiny first fragments (no full transport header)
 * are already refused by parse. Entries die after 30 s, or when their datagram is complete; only first fragments make one. */
enum canal_drop frag_check(struct frag_table *t, const struct packet *p, uint64_t now_ms, struct frag_verdict *verdict);
/* After the first fragment passed every stage: what later ones shall get. No-op when the datagram has no entry (any more). */
void frag_remember(struct frag_table *t, const struct packet *p, const struct frag_verdict *verdict);
uint32_t frag_count(const struct frag_table *t);
/* Expire; looks at up to n entries. */
uint32_t frag_sweep(struct frag_table *t, uint64_t now_ms, uint32_t n);

/* Cut a linear IPv4 packet (DF clear, checksum final, maybe itself a fragment) into fragments of at most mtu bytes, written one after the
 * other to out, each with `headroom` free bytes before it. Options: copied where their copy bit says so. spans[i] = the packet without headroom.
 * Returns the count, 0 if it does not fit out or max. */
uint32_t frag_split(const struct packet *p, uint32_t mtu_bytes, uint32_t headroom, uint8_t *out, size_t out_size, struct canal_span *spans, uint32_t max);
#endif
