/*
 * notes.c - the flows that policy denied or was asked to log: for people, not for packets.
 *
 * Place:      written by judge.c, read by canal_notes_read().
 * Structure:  rows found by the flow's hash, a few next to each other; a new flow takes a row of its own, else the one that was silent longest:
 *
 *     hash & mask ──► | note | note | note | note |      each under a sequence number, odd while it is written
 *
 * Invariants: a reader sees whole notes only. The table never grows: under a flood the oldest notes are forgotten, never a packet.
 * Threads:    one writer, any readers.
 * Limits:     NOTES rows.
 */
#include "notes.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { NOTES = 4096, WAYS = 4, WORDS = sizeof(struct canal_note) / sizeof(uint64_t) };

_Static_assert(sizeof(struct canal_note) % sizeof(uint64_t) == 0, "a note is copied by words");

struct row {
	_Atomic uint32_t sequence;
	_Atomic uint64_t words[WORDS];
};

struct notes {
	struct canal_note own[NOTES];       /* the writer's */
	struct row rows[NOTES];             /* what readers see */
};

struct notes *notes_new(void)
{
	return calloc(1, sizeof(struct notes));
}

void notes_free(struct notes *notes)
{
	free(notes);
}

static bool same_flow(const struct canal_note *note, const struct canal_flow *first)
{
	return note->packets && note->proto == first->proto && note->sport_be == first->sport_be && note->dport_be == first->dport_be &&
	       note->icmp_type == first->icmp_type && note->icmp_code == first->icmp_code && memcmp(note->src, first->src, 16) == 0 &&
	       memcmp(note->dst, first->dst, 16) == 0;
}

/* The row of this flow, or of the flow that was silent longest among those that it may displace. */
static uint32_t row_of(const struct notes *notes, uint32_t hash, const struct canal_flow *first)
{
	uint32_t begin = hash % (NOTES / WAYS) * WAYS, best = begin;

	for (uint32_t at = begin; at < begin + WAYS; at++) {
		if (same_flow(&notes->own[at], first))
			return at;
		if (notes->own[at].last_ms < notes->own[best].last_ms)
			best = at;
	}
	return best;
}

static void publish(struct row *row, const struct canal_note *note)
{
	uint32_t sequence = atomic_load_explicit(&row->sequence, memory_order_relaxed);
	uint64_t words[WORDS];

	memcpy(words, note, sizeof(words));
	atomic_store_explicit(&row->sequence, sequence + 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	for (size_t i = 0; i < WORDS; i++)
		atomic_store_explicit(&row->words[i], words[i], memory_order_relaxed);
	atomic_store_explicit(&row->sequence, sequence + 2, memory_order_release);
}

void notes_add(struct notes *notes, const struct packet *p, const struct canal_flow *first, const struct canal_judgement *found, uint64_t now_ms)
{
	uint32_t at = row_of(notes, p->hash, first);
	struct canal_note *note = &notes->own[at];

	if (!same_flow(note, first) || note->verdict != found->verdict) {
		*note = (struct canal_note){ .sport_be = first->sport_be, .dport_be = first->dport_be, .proto = first->proto, .family = first->family,
		                             .icmp_type = first->icmp_type, .icmp_code = first->icmp_code, .first_ms = now_ms };
		memcpy(note->src, first->src, 16);
		memcpy(note->dst, first->dst, 16);
	}
	note->verdict = found->verdict;
	note->reject = found->reject;
	note->end = found->end;
	memcpy(note->rule, found->rule, sizeof(note->rule));
	memcpy(note->log, found->log, sizeof(note->log));
	note->in_target = p->in;
	note->packets += p->vnet.segments;
	note->bytes += p->total;
	note->last_ms = now_ms;
	publish(&notes->rows[at], note);
}

static void read_row(struct row *row, struct canal_note *note)
{
	uint64_t words[WORDS] = { 0 };
	uint32_t before, after;

	do {
		before = atomic_load_explicit(&row->sequence, memory_order_acquire);
		for (size_t i = 0; i < WORDS; i++)
			words[i] = atomic_load_explicit(&row->words[i], memory_order_relaxed);
		atomic_thread_fence(memory_order_acquire);
		after = atomic_load_explicit(&row->sequence, memory_order_relaxed);
	} while ((before & 1) || before != after);
	memcpy(note, words, sizeof(*note));
}

size_t notes_read(struct notes *notes, uint64_t since_ms, struct canal_note *out, size_t n)
{
	size_t count = 0;

	for (size_t i = 0; i < NOTES && count < n; i++) {
		read_row(&notes->rows[i], &out[count]);
		count += out[count].packets > 0 && out[count].last_ms > since_ms;
	}
	return count;
}
