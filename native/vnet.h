/* vnet.h - struct virtio_net_hdr, both ways; see vnet.c. */
#ifndef CANAL_VNET_H
#define CANAL_VNET_H
#include "packet.h"

/* Check a raw virtio_net_hdr (CANAL_VNET_HDR_SIZE bytes, native byte order as TUN writes it) against the parsed packet behind it and
 * fill *vnet. hdr_len is never believed. A plain packet without NEEDS_CSUM is the common case. */
enum canal_drop vnet_pull(const uint8_t *hdr, const struct canal_flow *flow, struct canal_vnet *vnet);
/* Write the header for a TUN write: NEEDS_CSUM and GSO fields as in *vnet. */
void vnet_push(uint8_t *hdr, const struct canal_vnet *vnet);
#endif
