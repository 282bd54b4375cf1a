/*
 * tables.c - the immutable snapshot: copied, checked as a whole, frozen.
 *
 * Place:      canal.h's way in for everything that the control plane decides; epoch.c publishes what is built here.
 * Structure:  node + FIB + VTEPs, and an open-addressing index of the VTEPs by (underlay address, encapsulation):
 *
 *     hash(addr) & mask ──► vtep_index: | row | row | FREE | ... |    linear probing, at most half full
 *
 * Invariants: whatever passes canal_tables_build() needs no check later: every target's index is inside its table, every number in its
 *             domain, no two VTEPs have the same address and encapsulation. Nothing is written after the build.
 *             A fault names table, row and the struct member's offset; the caller's arrays are not kept.
 * Threads:    built by any; read by the worker inside an epoch; freed by the control thread after its grace period.
 * Limits:     2^20 VTEPs (the index bits of a target).
 */
#include "tables.h"

#include <stdlib.h>
#include <string.h>

enum { MTU_MIN = 576 - 50 };     /* RFC 791 3.2: what every host takes, less VXLAN over IPv4 */
enum { VNI_END = 1 << 24 };      /* RFC 7348 5 */
enum { MSS_MAX = 65535, INDEX_MIN = 8 };
#define VTEPS_MAX ((size_t)CANAL_TARGET_INDEX)
#define INDEX_FREE 0xffffffffu
#define TARGET_BITS (CANAL_TARGET_KIND | CANAL_TARGET_LOCAL | CANAL_TARGET_INDEX)

#define FAULT(rc, in, at, type, member) fault_at(fault, rc, in, at, offsetof(struct type, member))

static int fault_at(struct canal_fault *fault, int code, enum canal_table table, size_t row, size_t field)
{
	*fault = (struct canal_fault){ .code = code, .table = (int32_t)table, .row = (uint32_t)row, .field = (uint32_t)field };
	return code;
}

static bool is_zero(const uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (bytes[i])
			return false;
	return true;
}

static bool is_v4_mapped(const uint8_t addr[16])
{
	static const uint8_t prefix[12] = { [10] = 0xff, [11] = 0xff };

	return memcmp(addr, prefix, sizeof(prefix)) == 0;
}

/* ---- checks -------------------------------------------------------------------------------------------------------------- */

static int check_node(const struct canal_node *node, struct canal_fault *fault)
{
	if (!is_zero(node->router4, 16) && !is_v4_mapped(node->router4))
		return FAULT(CANAL_EINVAL, CANAL_TABLE_NODE, 0, canal_node, router4);
	if (is_v4_mapped(node->router6) || node->router6[0] == 0xff)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_NODE, 0, canal_node, router6);
	if (node->mac[0] & 1)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_NODE, 0, canal_node, mac);
	if (node->policy_default > CANAL_ALLOW)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_NODE, 0, canal_node, policy_default);
	if (node->vni >= VNI_END)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_NODE, 0, canal_node, vni);
	if (node->mss_clamp > MSS_MAX)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_NODE, 0, canal_node, mss_clamp);
	return CANAL_OK;
}

static int check_vtep(const struct canal_vtep *vtep, size_t row, struct canal_fault *fault)
{
	if (vtep->family != 4 && vtep->family != 6)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_VTEP, row, canal_vtep, family);
	if (is_v4_mapped(vtep->addr) != (vtep->family == 4) || is_zero(vtep->addr, 16))
		return FAULT(CANAL_EINVAL, CANAL_TABLE_VTEP, row, canal_vtep, addr);
	if (vtep->encap > CANAL_ENCAP_VXLAN)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_VTEP, row, canal_vtep, encap);
	if (vtep->port_be == 0)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_VTEP, row, canal_vtep, port_be);
	if (vtep->mtu_bytes < MTU_MIN)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_VTEP, row, canal_vtep, mtu_bytes);
	if (vtep->mac[0] & 1)
		return FAULT(CANAL_EINVAL, CANAL_TABLE_VTEP, row, canal_vtep, mac);
	return CANAL_OK;
}

/* CANAL_OK, CANAL_EINVAL (no such kind, or bits that mean nothing there) or CANAL_ERANGE (no such port or VTEP). */
static int check_target(uint32_t target, size_t n_vteps)
{
	uint32_t index = target & CANAL_TARGET_INDEX;

	if (target & ~(uint32_t)TARGET_BITS)
		return CANAL_EINVAL;
	switch (target & CANAL_TARGET_KIND) {
	case CANAL_TARGET_PORT:
		return index < CANAL_PORTS_MAX ? CANAL_OK : CANAL_ERANGE;
	case CANAL_TARGET_VTEP:
		if (target & CANAL_TARGET_LOCAL)
			return CANAL_EINVAL;
		return index < n_vteps ? CANAL_OK : CANAL_ERANGE;
	case CANAL_TARGET_REJECT:
		return index == 0 ? CANAL_OK : CANAL_EINVAL;
	default:
		return CANAL_EINVAL;
	}
}

static int check_all(const struct canal_node *node, const struct canal_vtep *vteps, size_t n_vteps,
                     const struct canal_fib_entry *fib, size_t n_fib, struct canal_fault *fault)
{
	int rc;

	if (!node)
		return fault_at(fault, CANAL_EINVAL, CANAL_TABLE_NODE, 0, 0);
	if (!vteps && n_vteps)
		return fault_at(fault, CANAL_EINVAL, CANAL_TABLE_VTEP, 0, 0);
	if (!fib && n_fib)
		return fault_at(fault, CANAL_EINVAL, CANAL_TABLE_FIB, 0, 0);
	if (n_vteps > VTEPS_MAX)
		return fault_at(fault, CANAL_ERANGE, CANAL_TABLE_VTEP, VTEPS_MAX, 0);
	rc = check_node(node, fault);
	for (size_t i = 0; i < n_vteps && !rc; i++)
		rc = check_vtep(&vteps[i], i, fault);
	for (size_t i = 0; i < n_fib && !rc; i++) {
		int why = check_target(fib[i].target, n_vteps);

		if (why)
			rc = FAULT(why, CANAL_TABLE_FIB, i, canal_fib_entry, target);
	}
	return rc;
}

/* ---- the VTEP index ------------------------------------------------------------------------------------------------------ */

/* Neighbours differ in the last bytes only, the highest ones of `low`: brought down first, as a product carries upwards. */
static inline uint32_t hash_addr(const uint8_t addr[16])
{
	uint64_t high, low, mixed;

	memcpy(&high, addr, 8);
	memcpy(&low, addr + 8, 8);
	mixed = high * 0x9e3779b97f4a7c15u ^ low;
	return (uint32_t)((mixed ^ mixed >> 32) * 0xbf58476d1ce4e5b9u >> 32);
}

/* The slot of this VTEP, or the free one where it belongs. */
static inline uint32_t *slot_of(const struct canal_tables *t, const uint8_t addr[16], uint8_t encap)
{
	for (uint32_t i = hash_addr(addr);; i++) {
		uint32_t *slot = &t->vtep_index[i & t->vtep_mask];

		if (*slot == INDEX_FREE)
			return slot;
		if (t->vteps[*slot].encap == encap && memcmp(t->vteps[*slot].addr, addr, 16) == 0)
			return slot;
	}
}

uint32_t tables_find_vtep(const struct canal_tables *t, const uint8_t addr[16], uint8_t encap)
{
	uint32_t row = *slot_of(t, addr, encap);

	return row == INDEX_FREE ? t->n_vteps : row;
}

static int build_index(struct canal_tables *t, struct canal_fault *fault)
{
	uint32_t size = INDEX_MIN;

	while (size < 2 * t->n_vteps)
		size *= 2;
	t->vtep_mask = size - 1;
	t->vtep_index = malloc(size * sizeof(*t->vtep_index));
	if (!t->vtep_index)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_VTEP, 0, 0);
	memset(t->vtep_index, 0xff, size * sizeof(*t->vtep_index));
	for (uint32_t row = 0; row < t->n_vteps; row++) {
		uint32_t *slot = slot_of(t, t->vteps[row].addr, t->vteps[row].encap);

		if (*slot != INDEX_FREE)
			return FAULT(CANAL_EDUP, CANAL_TABLE_VTEP, row, canal_vtep, addr);
		*slot = row;
	}
	return CANAL_OK;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

static int fill(struct canal_tables *t, const struct canal_vtep *vteps, const struct canal_fib_entry *fib, size_t n_fib, struct canal_fault *fault)
{
	int rc;

	t->vteps = malloc((t->n_vteps + (size_t)1) * sizeof(*vteps));
	if (!t->vteps)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_VTEP, 0, 0);
	if (t->n_vteps)
		memcpy(t->vteps, vteps, t->n_vteps * sizeof(*vteps));
	rc = build_index(t, fault);
	return rc ? rc : fib_build(fib, n_fib, &t->fib, fault);
}

int canal_tables_build(const struct canal_node *node, const struct canal_vtep *vteps, size_t n_vteps,
                       const struct canal_fib_entry *fib, size_t n_fib, uint64_t generation,
                       struct canal_tables **out, struct canal_fault *fault)
{
	struct canal_tables *t;
	int rc;

	*out = NULL;
	*fault = (struct canal_fault){ 0 };
	rc = check_all(node, vteps, n_vteps, fib, n_fib, fault);
	if (rc)
		return rc;
	t = calloc(1, sizeof(*t));
	if (!t)
		return fault_at(fault, CANAL_ENOMEM, CANAL_TABLE_NODE, 0, 0);
	t->generation = generation;
	t->node = *node;
	t->n_vteps = (uint32_t)n_vteps;
	rc = fill(t, vteps, fib, n_fib, fault);
	if (rc) {
		canal_tables_free(t);
		return rc;
	}
	*out = t;
	return CANAL_OK;
}

void canal_tables_free(struct canal_tables *tables)
{
	if (!tables)
		return;
	canal_policy_release(tables->policy);
	fib_free(tables->fib);
	free(tables->vtep_index);
	free(tables->vteps);
	free(tables);
}

int canal_tables_set_policy(struct canal_tables *tables, struct canal_policy *policy)
{
	canal_policy_release(tables->policy);
	tables->policy = policy;
	if (policy)
		canal_policy_hold(policy);
	return CANAL_OK;
}

int canal_fib_lookup(const struct canal_tables *tables, const uint8_t *addrs, size_t n, uint32_t *targets)
{
	uint8_t families[CANAL_BATCH_MAX];

	for (size_t first = 0; first < n; first += CANAL_BATCH_MAX) {
		size_t count = n - first < CANAL_BATCH_MAX ? n - first : CANAL_BATCH_MAX;

		for (size_t i = 0; i < count; i++)
			families[i] = is_v4_mapped(addrs + (first + i) * 16) ? 4 : 6;
		fib_lookup_batch(tables->fib, addrs + first * 16, families, count, targets + first);
	}
	return CANAL_OK;
}
