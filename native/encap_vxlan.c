/*
 * encap_vxlan.c - push and pull of the VXLAN header and the Ethernet header behind it.
 *
 * Place:      last stage before the underlay socket, first one after it.
 * Structure:
 *
 *      0                   1                   2                   3
 *      0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
 *     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
 *     |0 0 0 0 1 0 0 0|                  reserved                     |  0   flags: I, the VNI is valid
 *     |                      VNI                      |   reserved    |  4
 *     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
 *     |                  destination: MAC of the peer's VTEP          |  8
 *     |                               |  source: MAC of our own       | 12
 *     |                                                               | 16
 *     |           ethertype           |  inner IP packet ...            20
 *     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
 *
 * Invariants: pull accepts what a kernel VXLAN device programmed as flannel does accepts, and of that only unicast frames that
 *             carry IPv4 or IPv6: no other flag, no reserved bit, this VNI, to our MAC, not from our MAC.
 * Limits:     no VLAN tag, no GBP, no GPE; overhead 22 bytes plus UDP and IP, which are the kernel's.
 * Source:     RFC 7348 section 5.
 */
#include "encap.h"

#include <net/ethernet.h>
#include <string.h>

enum { VXLAN_FLAG_VNI = 0x08, VXLAN_ETHER = 8, VXLAN_TYPE = 20 };   /* offsets: inner Ethernet header, ethertype */

uint32_t vxlan_push(uint8_t *inner, uint8_t family, const struct canal_node *node, const struct canal_vtep *vtep)
{
	uint8_t *h = inner - VXLAN_OVERHEAD;

	store_be32(h, (uint32_t)VXLAN_FLAG_VNI << 24);
	store_be32(h + 4, node->vni << 8);
	memcpy(h + VXLAN_ETHER, vtep->mac, ETH_ALEN);
	memcpy(h + VXLAN_ETHER + ETH_ALEN, node->mac, ETH_ALEN);
	store_be16(h + VXLAN_TYPE, family == 4 ? ETHERTYPE_IP : ETHERTYPE_IPV6);
	return VXLAN_OVERHEAD;
}

enum canal_drop vxlan_pull(uint8_t *datagram, uint32_t size, const struct canal_node *node, uint8_t **inner, uint32_t *inner_size)
{
	const uint8_t *ether = datagram + VXLAN_ETHER;
	uint8_t version;

	if (size <= VXLAN_OVERHEAD)
		return CANAL_DROP_SHORT;
	if (load_be32(datagram) != (uint32_t)VXLAN_FLAG_VNI << 24 || datagram[7] != 0)
		return CANAL_DROP_BAD_VXLAN;
	if (load_be32(datagram + 4) >> 8 != node->vni)
		return CANAL_DROP_BAD_VNI;
	if (memcmp(ether, node->mac, ETH_ALEN) != 0 || memcmp(ether + ETH_ALEN, node->mac, ETH_ALEN) == 0)
		return CANAL_DROP_BAD_ETHER;
	version = datagram[VXLAN_OVERHEAD] >> 4;
	if ((version != 4 && version != 6) || load_be16(datagram + VXLAN_TYPE) != (version == 4 ? ETHERTYPE_IP : ETHERTYPE_IPV6))
		return CANAL_DROP_BAD_ETHER;
	*inner = datagram + VXLAN_OVERHEAD;
	*inner_size = size - VXLAN_OVERHEAD;
	return CANAL_DROP_NONE;
}
