/* encap.h - push and pull of the outer header; see encap_vxlan.c, encap_udp.c. The UDP and IP headers outside are the kernel's. */
#ifndef CANAL_ENCAP_H
#define CANAL_ENCAP_H
#include "packet.h"

enum { VXLAN_OVERHEAD = 22 };    /* VXLAN 8 + inner Ethernet 14; UDP and IP come on top */
enum { UDP_OVERHEAD = 0 };

/* Write the header right before `inner`; returns its size. family: of the inner packet. */
uint32_t vxlan_push(uint8_t *inner, uint8_t family, const struct canal_node *node, const struct canal_vtep *vtep);
uint32_t udp_push(uint8_t *inner, uint8_t family, const struct canal_node *node, const struct canal_vtep *vtep);
/* Strip the header of a datagram: *inner = first byte of the inner IP packet, *inner_size the bytes left. Strict as the kernel is. */
enum canal_drop vxlan_pull(uint8_t *datagram, uint32_t size, const struct canal_node *node, uint8_t **inner, uint32_t *inner_size);
enum canal_drop udp_pull(uint8_t *datagram, uint32_t size, const struct canal_node *node, uint8_t **inner, uint32_t *inner_size);

static inline uint32_t encap_overhead(uint8_t encap) { return encap == CANAL_ENCAP_VXLAN ? VXLAN_OVERHEAD : UDP_OVERHEAD; }
static inline uint32_t encap_push(uint8_t *inner, uint8_t family, const struct canal_node *node, const struct canal_vtep *vtep)
{
	return vtep->encap == CANAL_ENCAP_VXLAN ? vxlan_push(inner, family, node, vtep) : udp_push(inner, family, node, vtep);
}
static inline enum canal_drop encap_pull(uint8_t encap, uint8_t *datagram, uint32_t size, const struct canal_node *node,
                                         uint8_t **inner, uint32_t *inner_size)
{
	return encap == CANAL_ENCAP_VXLAN ? vxlan_pull(datagram, size, node, inner, inner_size)
	                                  : udp_pull(datagram, size, node, inner, inner_size);
}
#endif
