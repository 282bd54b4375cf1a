/* classify_build.h - rules -> what classify.c searches; see classify_build.c. */
#ifndef CANAL_CLASSIFY_BUILD_H
#define CANAL_CLASSIFY_BUILD_H
#include "classify_set.h"

/* The values that a rule takes in the fields that are numbers, both ends included. */
struct classify_ranges { uint16_t lo[CLASSIFY_RUNS], hi[CLASSIFY_RUNS]; };

struct classify_builder {
	const struct classify_ranges *ranges;
	size_t n;
	struct canal_fault *fault;
	enum canal_table table;            /* whose rows a fault names, ... */
	size_t members[CLASSIFY_RUNS];     /* ... and the members that hold the ranges */
	struct classify_set set;           /* empty between two fields */
};

int classify_fault(struct classify_builder *b, int code, size_t row, size_t field);
/* The vector of what the set holds now. row, field: whom to blame when there is no room. */
int classify_take(struct classify_builder *b, size_t row, size_t field, uint32_t *vector);
/* Ranges and cells of a core that is zeroed; the builder's set then takes the vectors of the addresses. */
int classify_core_begin(struct classify_builder *b, struct classify_core *core);
/* Hand the vectors to the core (rc: what went wrong so far, or CANAL_OK) and free the set. */
int classify_core_end(struct classify_builder *b, struct classify_core *core, int rc);
void classify_core_free(struct classify_core *core);
#endif
