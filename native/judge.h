/* judge.h - may this packet pass, and where to; see judge.c. */
#ifndef CANAL_JUDGE_H
#define CANAL_JUDGE_H
#include "worker.h"

/* Decide for one packet after its flow was looked up: sets p->out. Returns why not, or CANAL_DROP_NONE. */
enum canal_drop judge_packet(struct worker *w, struct packet *p);
#endif
