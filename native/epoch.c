/*
 * epoch.c - publish and reclaim snapshots without a lock on the packet's way.
 *
 *   worker                                  control
 *     loop:                                   epoch_publish(e, tables)    one pointer exchange; the old snapshot is retired
 *       t = epoch_enter(e)                    epoch_reclaim(e)            frees what the worker can no longer see
 *       ... one batch with t ...              epoch_wait_quiescent(e)     afterwards nobody uses what was withdrawn before
 *       epoch_leave(e)     before it sleeps
 *
 * Every publication advances `global`; a retired snapshot carries the number that replaced it. On entering, the worker first says which
 * number it has seen, then reads the pointer: whoever then finds it idle, or at that number or beyond, knows that it reads a later pointer.
 *
 * Place:      between tables.c, which builds snapshots, and worker.c, which reads them.
 * Invariants: the worker's number is stored before `current` is read, `current` is replaced before `global` advances and before the
 *             worker's number is read; all of these in one total order (seq_cst), so one side always sees the other.
 *             Between epoch_enter() and the next epoch_enter() or epoch_leave() the snapshot stays valid.
 * Threads:    one worker, one control thread at a time; the counters may be read by any.
 * Source:     the use and size of libqsbr (NetBSD); Fraser 2004 on epochs.
 */
#include "epoch.h"

#include <sched.h>
#include <time.h>

enum { YIELDS = 64, PAUSE_NS = 50000 };    /* patience of epoch_wait_quiescent: yield first, then nap */

void epoch_init(struct epoch *e)
{
	atomic_init(&e->current, NULL);
	atomic_init(&e->global, 1);
	atomic_init(&e->worker, EPOCH_IDLE);
	e->retired = NULL;
	atomic_init(&e->n_retired, 0);
	atomic_init(&e->published, 0);
}

void epoch_destroy(struct epoch *e)
{
	canal_tables_free(atomic_exchange(&e->current, NULL));
	while (e->retired) {
		struct canal_tables *next = e->retired->next_retired;

		canal_tables_free(e->retired);
		e->retired = next;
	}
	atomic_store(&e->n_retired, 0);
}

void epoch_publish(struct epoch *e, struct canal_tables *tables)
{
	struct canal_tables *old = atomic_exchange(&e->current, tables);
	uint64_t epoch = atomic_fetch_add(&e->global, 1) + 1;

	atomic_fetch_add_explicit(&e->published, 1, memory_order_relaxed);
	if (!old)
		return;
	old->retired_epoch = epoch;
	old->next_retired = e->retired;
	e->retired = old;
	atomic_fetch_add_explicit(&e->n_retired, 1, memory_order_relaxed);
}

static bool worker_passed(struct epoch *e, uint64_t epoch)
{
	uint64_t seen = atomic_load(&e->worker);

	return seen == EPOCH_IDLE || seen >= epoch;
}

uint32_t epoch_reclaim(struct epoch *e)
{
	struct canal_tables **link = &e->retired;
	uint32_t left = 0;

	while (*link) {
		struct canal_tables *tables = *link;

		if (worker_passed(e, tables->retired_epoch)) {
			*link = tables->next_retired;
			canal_tables_free(tables);
		} else {
			link = &tables->next_retired;
			left++;
		}
	}
	atomic_store_explicit(&e->n_retired, left, memory_order_relaxed);
	return left;
}

void epoch_wait_quiescent(struct epoch *e)
{
	uint64_t epoch = atomic_fetch_add(&e->global, 1) + 1;

	for (uint32_t i = 0; !worker_passed(e, epoch); i++) {
		if (i < YIELDS)
			sched_yield();
		else
			nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
	}
}

struct canal_tables *epoch_enter(struct epoch *e)
{
	atomic_store(&e->worker, atomic_load(&e->global));
	return atomic_load(&e->current);
}

void epoch_leave(struct epoch *e)
{
	atomic_store(&e->worker, EPOCH_IDLE);
}
