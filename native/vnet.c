/*
 * vnet.c - struct virtio_net_hdr: what stands before every packet of a TUN opened with IFF_VNET_HDR.
 *
 * Place:      vnet_pull right after parse on what a TUN read, vnet_push right before a TUN write.
 * Structure:  10 bytes, native byte order.
 *
 *       0       1       2         4           6            8
 *     +-------+-------+---------+-----------+------------+-------------+
 *     | flags | gso   | hdr_len | gso_size  | csum_start | csum_offset |  IP packet ...
 *     |       | type  |         |           |            |             |
 *     +-------+-------+---------+-----------+------------+-------------+
 *       1 NEEDS_CSUM: sum from csum_start to the end, store it csum_offset further on; the field holds the pseudo header's sum
 *       2 DATA_VALID: nothing for us
 *
 * Invariants: nothing in the header is believed: the checksum must lie where the parser found the transport header, hdr_len is a
 *             hint, and the number of segments follows from the packet. What comes out says the truth or is CANAL_DROP_BAD_GSO.
 * Limits:     TCP and UDP (USO); no UFO, no tunnel bits. CANAL_SEGMENTS_MAX segments: set gso_max_segs of the TUN to that, and
 *             the kernel cuts what would have more. SYN and RST do not come in superpackets.
 * Source:     Virtio 1.2, 5.1.6; include/uapi/linux/virtio_net.h; tun_get_user() for the use of hdr_len.
 */
#include "vnet.h"

#include <netinet/in.h>
#include <string.h>

enum { VNET_NEEDS_CSUM = 1, VNET_DATA_VALID = 2 };
enum { VNET_TCP_CHECK = 16, VNET_UDP_CHECK = 6 };      /* offset of the checksum in the transport header */
enum { VNET_TCP_SYN = 2, VNET_TCP_RST = 4 };

struct vnet_hdr { uint8_t flags, gso_type; uint16_t hdr_len, gso_size, csum_start, csum_offset; };

_Static_assert(sizeof(struct vnet_hdr) == CANAL_VNET_HDR_SIZE, "as the kernel lays it out");

static bool vnet_csum_ok(const struct vnet_hdr *h, const struct canal_flow *flow)
{
	uint16_t offset = flow->proto == IPPROTO_TCP ? VNET_TCP_CHECK : VNET_UDP_CHECK;

	return (flow->proto == IPPROTO_TCP || flow->proto == IPPROTO_UDP) && !(flow->flags & CANAL_FLOW_FRAG) &&
	       h->csum_start == flow->l4_offset && h->csum_offset == offset;
}

/* Does the type, without the ECN bit, belong to such a packet? */
static bool vnet_type_ok(uint8_t gso_type, const struct canal_flow *flow)
{
	switch (gso_type & ~GSO_ECN) {
	case GSO_TCPV4: return flow->family == 4 && flow->proto == IPPROTO_TCP;
	case GSO_TCPV6: return flow->family == 6 && flow->proto == IPPROTO_TCP;
	case GSO_UDP_L4: return flow->proto == IPPROTO_UDP && !(gso_type & GSO_ECN);
	default: return false;
	}
}

static enum canal_drop vnet_pull_gso(const struct vnet_hdr *h, const struct canal_flow *flow, struct canal_vnet *vnet)
{
	uint32_t payload = flow->total_size - vnet->hdr_size, segments;

	if (!vnet_type_ok(h->gso_type, flow) || h->gso_size == 0 || !vnet->needs_csum)
		return CANAL_DROP_BAD_GSO;
	if (payload <= h->gso_size)                  /* the kernel may say so of a packet that needs no cutting */
		return CANAL_DROP_NONE;
	segments = (payload + h->gso_size - 1) / h->gso_size;
	if (segments > CANAL_SEGMENTS_MAX || flow->tcp_flags & (VNET_TCP_SYN | VNET_TCP_RST))
		return CANAL_DROP_BAD_GSO;
	vnet->gso_type = (uint8_t)(h->gso_type & ~GSO_ECN);
	vnet->gso_size = h->gso_size;
	vnet->segments = (uint16_t)segments;
	return CANAL_DROP_NONE;
}

enum canal_drop vnet_pull(const uint8_t *hdr, const struct canal_flow *flow, struct canal_vnet *vnet)
{
	struct vnet_hdr h;

	memcpy(&h, hdr, sizeof(h));
	*vnet = (struct canal_vnet){ .hdr_size = (uint16_t)(flow->l4_offset + flow->l4_size), .segments = 1 };
	if (h.flags & VNET_NEEDS_CSUM) {
		if (!vnet_csum_ok(&h, flow))
			return CANAL_DROP_BAD_GSO;
		vnet->needs_csum = 1;
		vnet->csum_start = h.csum_start;
		vnet->csum_offset = h.csum_offset;
	}
	if (unlikely(h.flags & ~(VNET_NEEDS_CSUM | VNET_DATA_VALID)))
		return CANAL_DROP_BAD_GSO;
	return h.gso_type == GSO_NONE ? CANAL_DROP_NONE : vnet_pull_gso(&h, flow, vnet);
}

void vnet_push(uint8_t *hdr, const struct canal_vnet *vnet)
{
	/* hdr_len also for plain packets: the kernel allocates everything beyond it as pages instead of one large block. */
	struct vnet_hdr h = {
		.flags = vnet->needs_csum ? VNET_NEEDS_CSUM : 0,
		.gso_type = vnet->gso_type,
		.hdr_len = vnet->hdr_size,
		.gso_size = vnet->gso_size,
		.csum_start = vnet->csum_start,
		.csum_offset = vnet->csum_offset,
	};

	memcpy(hdr, &h, sizeof(h));
}

int canal_vnet_check(const uint8_t *hdr, const struct canal_flow *flow, struct canal_vnet *vnet)
{
	return (int)vnet_pull(hdr, flow, vnet);
}
