/*
 * counters.h - what happened to every packet.
 *
 * Place:      every file of the packet's way counts through these functions.
 * Structure:  the worker counts in `own`; at the end of each turn of its loop it copies them to `shared` under a sequence number, so that
 *             a reader always sees a state between two batches: the conservation law holds for whatever it reads.
 * Threads:    own: worker. shared: written by the worker, read by any.
 */
#ifndef CANAL_COUNTERS_H
#define CANAL_COUNTERS_H
#include <stdatomic.h>

#include "canal.h"

struct counts { uint64_t counter[CANAL_COUNTERS]; uint64_t drop[CANAL_DROPS]; };

struct counters {
	struct counts own;
	_Atomic uint32_t sequence __attribute__((aligned(64)));   /* odd while the copy is under way */
	_Atomic uint64_t shared[CANAL_COUNTERS + CANAL_DROPS];
};

static inline void counters_publish(struct counters *c)
{
	uint32_t sequence = atomic_load_explicit(&c->sequence, memory_order_relaxed);
	atomic_store_explicit(&c->sequence, sequence + 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	for (uint32_t i = 0; i < CANAL_COUNTERS; i++)
		atomic_store_explicit(&c->shared[i], c->own.counter[i], memory_order_relaxed);
	for (uint32_t i = 0; i < CANAL_DROPS; i++)
		atomic_store_explicit(&c->shared[CANAL_COUNTERS + i], c->own.drop[i], memory_order_relaxed);
	atomic_store_explicit(&c->sequence, sequence + 2, memory_order_release);
}

static inline void counters_read(struct counters *c, uint64_t *counters, uint64_t *drops)
{
	uint32_t before, after;

	do {
		before = atomic_load_explicit(&c->sequence, memory_order_acquire);
		for (uint32_t i = 0; i < CANAL_COUNTERS; i++)
			counters[i] = atomic_load_explicit(&c->shared[i], memory_order_relaxed);
		for (uint32_t i = 0; i < CANAL_DROPS; i++)
			drops[i] = atomic_load_explicit(&c->shared[CANAL_COUNTERS + i], memory_order_relaxed);
		atomic_thread_fence(memory_order_acquire);
		after = atomic_load_explicit(&c->sequence, memory_order_relaxed);
	} while ((before & 1) || before != after);
}
#endif
