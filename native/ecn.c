/*
 * ecn.c - what congestion on the underlay means for the packet inside.
 *
 * Place:      last step of decap, after parse. The other direction (outer TOS) is one line in ecn.h.
 * Structure:  RFC 6040 4.2, figure 4; rows inner, columns outer:
 *
 *                     Not-ECT   ECT(0)    ECT(1)    CE
 *           Not-ECT   Not-ECT   Not-ECT   Not-ECT   drop
 *           ECT(0)    ECT(0)    ECT(0)    ECT(1)    CE
 *           ECT(1)    ECT(1)    ECT(1)    ECT(1)    CE
 *           CE        CE        CE        CE        CE
 *
 * Invariants: DSCP stays the inner one's. Only bits that change are written, and the IPv4 header checksum follows them.
 * Threads:    any; no state.
 */
#include "ecn.h"

#include "csum.h"

enum { ECN_NOT_ECT = 0, ECN_ECT1 = 1, ECN_ECT0 = 2, ECN_CE = 3, ECN_MASK = 3 };

static void set_tos(struct packet *p, uint8_t tos)
{
	uint8_t *ip = p->data;
	uint16_t before = load_be16(ip);

	if (p->flow.family == 4) {
		ip[1] = tos;
		store_be16(ip + 10, csum_update16(load_be16(ip + 10), before, load_be16(ip)));
	} else {
		store_be16(ip, (before & 0xf00fu) | (uint32_t)tos << 4);
	}
	p->flow.tos = tos;
}

enum canal_drop ecn_decap(struct packet *p, uint8_t outer_tos)
{
	uint8_t inner = p->flow.tos & ECN_MASK;
	uint8_t outer = outer_tos & ECN_MASK;

	if (inner == ECN_NOT_ECT)
		return outer == ECN_CE ? CANAL_DROP_ECN : CANAL_DROP_NONE;
	if (inner != ECN_CE && (outer == ECN_CE || (outer == ECN_ECT1 && inner == ECN_ECT0)))
		set_tos(p, (uint8_t)((p->flow.tos & ~ECN_MASK) | outer));
	return CANAL_DROP_NONE;
}
