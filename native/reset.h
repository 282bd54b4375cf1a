/* reset.h - the TCP reset that refuses a connection; see reset.c. */
#ifndef CANAL_RESET_H
#define CANAL_RESET_H
#include "packet.h"

enum { RESET_MAX = 60 };     /* bytes of the largest one */

/* Write the whole IP packet of the reset that answers `p` to out[RESET_MAX], in the name of the other end; returns its size, or 0 when
 * p is no TCP segment that may be answered: a reset, or a fragment. Checksums are final. */
uint32_t tcp_reset(const struct packet *p, uint8_t *out);
#endif
