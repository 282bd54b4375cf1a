/* conntrack_state.h - what a packet does to its flow's state; see conntrack_state.c. */
#ifndef CANAL_CONNTRACK_STATE_H
#define CANAL_CONNTRACK_STATE_H
#include "conntrack.h"

/* State of a flow that this packet opens; false when it can open none. */
bool ct_state_open(struct ct_entry *entry, const struct canal_flow *flow);
/* Advance; false when no packet of such a flow looks like this. reply: 0 or 1. */
bool ct_state_advance(struct ct_entry *entry, const struct canal_flow *flow, uint32_t reply);
/* How long the entry lives without another packet. */
uint32_t ct_state_timeout_ms(const struct ct_entry *entry);
/* Is this the first packet of another flow between the same ends? TCP: a SYN after the end. ICMP: a message of another kind, which bears the
 * same numbers by chance or by will. */
bool ct_state_reopens(const struct ct_entry *entry, const struct canal_flow *flow, bool reply);
/* Did both ends agree to this flow, and policy, and is it still going on? What is not settled may be evicted. */
bool ct_state_settled(const struct ct_entry *entry);
#endif
