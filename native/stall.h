/*
 * stall.h - does a TCP flow send its large packets again? Then the path may lose them without a word.
 *
 * Place:      emit.c, for large packets towards a peer. Python asks the path at once instead of at its next turn.
 * Structure:  slots by flow hash: how far the flow has sent. What does not go beyond that was sent before. Flows that share a slot put each
 *             other out: now and then one is not noticed, and Python asks anyway.
 * Invariants: a hint, no more: it costs an event, at most one in STALL_GAP_MS whatever pods send.
 * Threads:    worker.
 * Limits:     what lies more than STALL_BACK bytes back belongs to another connection with the same ports.
 * Source:     RFC 4821 5.2, RFC 8899 4.3: black hole detection; the first retransmission comes after about 200 ms.
 */
#ifndef CANAL_STALL_H
#define CANAL_STALL_H
#include <stdbool.h>
#include <stdint.h>

enum { STALL_SLOTS = 256, STALL_GAP_MS = 50, STALL_BACK = 64 << 20 };

struct stall {
	uint64_t told_ms;
	struct { uint32_t hash, end; } slots[STALL_SLOTS];
};

/* A segment of `size` bytes from `seq` on leaves: is it sent again, and worth an event? */
static inline bool stall_again(struct stall *s, uint32_t hash, uint32_t seq, uint32_t size, uint64_t now_ms)
{
	uint32_t *known = &s->slots[hash % STALL_SLOTS].hash, *end = &s->slots[hash % STALL_SLOTS].end;
	int32_t beyond = (int32_t)(seq + size - *end);

	if (*known != hash || beyond > 0 || beyond < -STALL_BACK) {
		*known = hash;
		*end = seq + size;
		return false;
	}
	if (now_ms - s->told_ms < STALL_GAP_MS)
		return false;
	s->told_ms = now_ms;
	return true;
}
#endif
