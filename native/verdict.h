/* verdict.h - what policy says of a packet's flow, and what is remembered of it; see verdict.c. */
#ifndef CANAL_VERDICT_H
#define CANAL_VERDICT_H
#include "worker.h"

/* Where a packet's ends live, as the FIB says it: targets. */
struct ends { uint32_t source, destination; };

/* May a flow begin with p? When it may not, it counts, is noted, and the drop says whether its sender is told. `turned`: p answers a flow
 * that an earlier data path knew, so it is the other end's. */
enum canal_drop verdict_new(struct worker *w, const struct packet *p, const struct ends *ends, struct canal_judgement *found, bool *turned);
/* Was this flow allowed under the snapshot of now? */
bool verdict_holds(const struct worker *w, const struct ct_entry *e);
/* May a known flow go on? `flow` is p's or, for an ICMP error, the quoted one, in the direction that `reply` says; so are its ends. */
enum canal_drop verdict_again(struct worker *w, const struct packet *p, const struct canal_flow *flow, struct ct_entry *e, bool reply,
                              const struct ends *ends);
/* A new flow begins: count it and keep what was found about it. */
void verdict_begin(struct worker *w, struct ct_entry *e, const struct canal_judgement *found);
#endif
