/* emit.h - a judged packet leaves: TTL, MSS, MTU, device or tunnel; see emit.c. */
#ifndef CANAL_EMIT_H
#define CANAL_EMIT_H
#include "worker.h"

/* Send p to p->out; it is sent, queued for tx_flush(), or dropped with a reason and, where a router would, an ICMP error. */
void emit_packet(struct worker *w, struct packet *p);
/* Drop p, and say so to its sender where the reason calls for it. */
void emit_refusal(struct worker *w, struct packet *p, enum canal_drop reason);
#endif
