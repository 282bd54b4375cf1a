/*
 * spin.h - is it worth waiting awake for the next packet, instead of asleep?
 *
 * Place:      worker.c, whenever a turn brought nothing.
 * Structure:  a wait that a packet ended is a hit and gives credit, one in vain is a miss and takes some. Without credit the worker sleeps at
 *             once, and waits awake one time in SPIN_RETRY to see whether that is still so:
 *
 *                 answers come soon, processors are idle      hits      a wake-up less on every packet's way
 *                 answers come late, or none                  misses    the processor rests
 *                 who would answer waits for our processor    misses    it gets it: sched_yield does not reach other control groups
 *
 * Threads:    worker.
 */
#ifndef CANAL_SPIN_H
#define CANAL_SPIN_H
#include <stdbool.h>
#include <stdint.h>

enum { SPIN_HIT = 4, SPIN_MISS = 1, SPIN_CREDIT_MAX = 16, SPIN_RETRY = 16 };   /* one hit in five waits keeps it up */

struct spin {
	uint32_t credit;
	uint32_t skipped;        /* waits asleep since the last one awake */
};

/* Asked once a wait. */
static inline bool spin_is_worth_it(struct spin *s)
{
	if (s->credit)
		return true;
	if (++s->skipped < SPIN_RETRY)
		return false;
	s->skipped = 0;
	return true;
}

static inline void spin_hit(struct spin *s)
{
	s->credit = s->credit + SPIN_HIT < SPIN_CREDIT_MAX ? s->credit + SPIN_HIT : SPIN_CREDIT_MAX;
}

static inline void spin_miss(struct spin *s)
{
	s->credit = s->credit > SPIN_MISS ? s->credit - SPIN_MISS : 0;
}
#endif
