/*
 * encap_udp.c - flannel's udp encapsulation: the datagram is the inner IP packet.
 *
 * Place:      last stage before the underlay socket, first one after it.
 * Structure:
 *
 *     outer IP | UDP, port 8285 | inner IP packet
 *
 * Invariants: pull lets only the versions 4 and 6 through; everything else about the packet is for parse to say.
 * Limits:     flannel itself carries IPv4 only; between our nodes IPv6 goes the same way.
 */
#include "encap.h"

uint32_t udp_push(uint8_t *inner, uint8_t family, const struct canal_node *node, const struct canal_vtep *vtep)
{
	(void)inner, (void)family, (void)node, (void)vtep;
	return UDP_OVERHEAD;
}

enum canal_drop udp_pull(uint8_t *datagram, uint32_t size, const struct canal_node *node, uint8_t **inner, uint32_t *inner_size)
{
	(void)node;
	if (size == 0)
		return CANAL_DROP_SHORT;
	if (datagram[0] >> 4 != 4 && datagram[0] >> 4 != 6)
		return CANAL_DROP_BAD_IP;
	*inner = datagram;
	*inner_size = size;
	return CANAL_DROP_NONE;
}
