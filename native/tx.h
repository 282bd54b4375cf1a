/* tx.h - messages to the underlay, gathered and sent together; see tx.c. */
#ifndef CANAL_TX_H
#define CANAL_TX_H
#include "worker.h"

/* Queue one outer payload of `size` bytes (header and inner packet) given as one or two pieces. packets, inner_bytes: what it counts for.
 * The bytes must stay where they are until tx_flush(). */
void tx_append(struct worker *w, struct port *port, uint32_t vtep, uint8_t tos, const struct iovec *iov, uint32_t n_iov,
               uint32_t packets, uint32_t inner_bytes);
/* The socket for this VTEP and flow, or NULL. */
struct port *tx_port(struct worker *w, const struct canal_vtep *vtep, uint32_t hash);
/* Send everything that was queued. */
void tx_flush(struct worker *w);
#endif
