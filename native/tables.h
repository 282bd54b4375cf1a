/* tables.h - the immutable snapshot; see tables.c. */
#ifndef CANAL_TABLES_H
#define CANAL_TABLES_H
#include "fib.h"
#include "packet.h"

struct canal_tables {
	uint64_t generation;
	struct canal_node node;
	struct fib *fib;
	struct canal_vtep *vteps;
	uint32_t n_vteps;
	struct canal_policy *policy;         /* held; NULL: node.policy_default for everything */
	struct canal_tables *next_retired;   /* epoch.c's, after it was replaced */
	uint64_t retired_epoch;
	/* vtep by underlay address: open addressing, built by tables.c */
	uint32_t vtep_mask;
	uint32_t *vtep_index;
};

/* The VTEP whose underlay address this is; several rows may share an address and differ in encap. n_vteps when unknown. */
uint32_t tables_find_vtep(const struct canal_tables *t, const uint8_t addr[16], uint8_t encap);
#endif
