/* notes.h - the flows that policy denied or was asked to log; see notes.c. */
#ifndef CANAL_NOTES_H
#define CANAL_NOTES_H
#include "packet.h"

struct notes;

struct notes *notes_new(void);
void notes_free(struct notes *notes);
/* p: the packet that was judged; first: the first one of its flow. */
void notes_add(struct notes *notes, const struct packet *p, const struct canal_flow *first, const struct canal_judgement *found, uint64_t now_ms);
/* Copy those that were seen after since_ms; returns how many. thread: any. */
size_t notes_read(struct notes *notes, uint64_t since_ms, struct canal_note *out, size_t n);
#endif
