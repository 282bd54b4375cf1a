/* policy.h - compiled rules -> verdict; see policy.c. */
#ifndef CANAL_POLICY_H
#define CANAL_POLICY_H
#include <stdatomic.h>

#include "classify.h"
#include "packet.h"

/* Single addresses, which later classes share. */
struct policy_addresses {
	_Atomic uint32_t references;
	struct fib *fib;              /* target = class + 1: a FIB says 0 of an address that it does not have */
};

struct canal_classes {
	_Atomic uint32_t references;
	uint32_t n_classes;
	struct policy_addresses *addresses, *base;   /* base: NULL, or what counts after addresses */
	struct fib *prefixes;
	uint32_t *flags;              /* CANAL_CLASS_*, one a class */
};

/* Rows and vectors, which programs for other classes share. */
struct policy_rows {
	_Atomic uint32_t references;
	uint32_t n_vectors;
	struct classify_core core;
	struct canal_row *rows;       /* as given */
	uint32_t *kept;               /* vector as given -> where it is kept */
};

struct canal_program {
	_Atomic uint32_t references;
	uint32_t n_classes;
	struct policy_rows *shared;
	uint32_t *vectors[2];         /* class of the source, of the destination -> vector, where it is kept */
};

struct canal_policy {
	_Atomic uint32_t references;
	uint32_t to_host;             /* enum canal_verdict */
	uint32_t n_programs, n_ports;
	struct canal_classes *classes;
	struct canal_program **programs;
	struct canal_program *(*of_port)[2];   /* port, enum canal_end -> program or NULL */
};

/* The verdict on a flow whose first packet this is. */
void policy_judge(const struct canal_policy *policy, const struct canal_flow *flow, const struct canal_way *way, struct canal_judgement *found);
#endif
