/* epoch.h - publish and reclaim snapshots without a lock on the packet's way; see epoch.c. */
#ifndef CANAL_EPOCH_H
#define CANAL_EPOCH_H
#include <stdatomic.h>

#include "tables.h"

enum { EPOCH_IDLE = 0 };         /* worker's epoch while it sleeps: delays nobody */

struct epoch {
	_Atomic(struct canal_tables *) current;
	_Atomic uint64_t global;     /* counts publications, starts at 1 */
	_Atomic uint64_t worker;     /* what the worker has seen, EPOCH_IDLE when it holds nothing (one worker in this release) */
	struct canal_tables *retired;   /* control thread only */
	_Atomic uint32_t n_retired;
	_Atomic uint64_t published;
};

void epoch_init(struct epoch *e);
void epoch_destroy(struct epoch *e);                                  /* frees current and retired */
void epoch_publish(struct epoch *e, struct canal_tables *tables);     /* thread: control */
uint32_t epoch_reclaim(struct epoch *e);                              /* thread: control; returns how many remain */
void epoch_wait_quiescent(struct epoch *e);                           /* thread: control; the worker has left the batch it was in (yields, no lock) */
struct canal_tables *epoch_enter(struct epoch *e);                    /* thread: worker; before a batch */
void epoch_leave(struct epoch *e);                                    /* thread: worker; before it may sleep */
#endif
