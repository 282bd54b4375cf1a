/* policy.h - compiled rules -> verdict; see policy.c. */
#ifndef CANAL_POLICY_H
#define CANAL_POLICY_H
#include "packet.h"
#include "tables.h"

struct policy_verdict { enum canal_verdict verdict; uint32_t rule; };

/* The verdict on a flow whose first packet went from `source` to `destination` (targets of the snapshot). */
struct policy_verdict policy_match(const struct canal_tables *tables, const struct canal_flow *original, uint32_t source, uint32_t destination);
#endif
