/*
 * reset.c - the TCP reset that refuses a connection, as the host that it was for would send it.
 *
 * Place:      called by emit.c for TCP packets that a policy rejects: a client learns at once, and so does an open connection.
 * Structure:  IPv4 20 or IPv6 40, then
 *
 *     | source port | destination port | sequence | acknowledgment | 5 << 4 | flags | window 0 | checksum | urgent 0 |
 *
 *             A segment with ACK is answered at the sequence number that it expects; one without, by acknowledging all of it.
 * Invariants: never an answer to a reset, nor to a fragment.
 * Threads:    any.
 * Source:     RFC 9293 3.10.7.1.
 */
#include "reset.h"

#include <netinet/in.h>
#include <string.h>

#include "csum.h"

enum { IPV4_HEADER = 20, IPV6_HEADER = 40, TCP_HEADER = 20, HOPS = 64 };
enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

static uint32_t write_ip(const struct canal_flow *flow, uint8_t *out)
{
	if (flow->family == 4) {
		memset(out, 0, IPV4_HEADER);
		out[0] = 0x45;
		store_be16(out + 2, IPV4_HEADER + TCP_HEADER);
		out[6] = 0x40;                         /* don't fragment: the identification says nothing */
		out[8] = HOPS;
		out[9] = IPPROTO_TCP;
		memcpy(out + 12, flow->dst + 12, 4);
		memcpy(out + 16, flow->src + 12, 4);
		csum_ipv4(out, IPV4_HEADER);
		return IPV4_HEADER;
	}
	memset(out, 0, IPV6_HEADER);
	out[0] = 0x60;
	store_be16(out + 4, TCP_HEADER);
	out[6] = IPPROTO_TCP;
	out[7] = HOPS;
	memcpy(out + 8, flow->dst, 16);
	memcpy(out + 24, flow->src, 16);
	return IPV6_HEADER;
}

uint32_t tcp_reset(const struct packet *p, uint8_t *out)
{
	const struct canal_flow *flow = &p->flow;
	const uint8_t *segment = p->data + flow->l4_offset;
	uint32_t payload = p->total - flow->l4_offset - flow->l4_size, ip_size;
	uint8_t *tcp;

	if (flow->proto != IPPROTO_TCP || flow->flags & CANAL_FLOW_FRAG || flow->tcp_flags & RST || flow->l4_size < TCP_HEADER)
		return 0;
	ip_size = write_ip(flow, out);
	tcp = out + ip_size;
	memset(tcp, 0, TCP_HEADER);
	memcpy(tcp, segment + 2, 2);
	memcpy(tcp + 2, segment, 2);
	if (flow->tcp_flags & ACK) {
		memcpy(tcp + 4, segment + 8, 4);
		tcp[13] = RST;
	} else {
		store_be32(tcp + 8, load_be32(segment + 4) + payload + ((flow->tcp_flags & SYN) != 0) + ((flow->tcp_flags & FIN) != 0));
		tcp[13] = RST | ACK;
	}
	tcp[12] = TCP_HEADER / 4 << 4;
	store_be16(tcp + 16, (uint16_t)~csum_fold(csum_add(tcp, TCP_HEADER, csum_pseudo(flow, TCP_HEADER))));
	return ip_size + TCP_HEADER;
}
