/* fib.h - longest prefix match: address -> target; see fib.c. */
#ifndef CANAL_FIB_H
#define CANAL_FIB_H
#include "packet.h"

struct fib;
/* Both families in one FIB. Entries may come in any order; duplicates are CANAL_EDUP, bad plen or host bits CANAL_EINVAL (fault->row, table =
 * CANAL_TABLE_FIB, field = offset of the struct member). Target indices are tables.c's to check. */
int fib_build(const struct canal_fib_entry *entries, size_t n, struct fib **out, struct canal_fault *fault);
void fib_free(struct fib *fib);
/* addr: v4-mapped or IPv6, 16 bytes. CANAL_TARGET_NONE when no prefix holds it. */
uint32_t fib_lookup(const struct fib *fib, const uint8_t addr[16], uint8_t family);
/* Prefetching batch; families[i] is 4 or 6. */
void fib_lookup_batch(const struct fib *fib, const uint8_t *addrs, const uint8_t *families, size_t n, uint32_t *targets);
#endif
