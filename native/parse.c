/*
 * parse.c - untrusted bytes -> struct canal_flow: the only reader of untrusted lengths.
 *
 * Place:      first stage of every packet, whatever port it came from. Called by pipeline.c, coalesce.c and canal_parse().
 * Structure:
 *
 *     IPv4     0                   1                   2                   3      IPv6     0                   1        ...         3
 *              |ver|ihl|   tos    |           total length           |                     |ver| traffic class |     flow label     |
 *              |        id        |-|D|M|     offset / 8             |                     |   payload length  |  next  | hop limit |
 *              |  ttl  |  proto   |         header checksum          |                     | source, 16 bytes                       |
 *              | source                                              |                     | destination, 16 bytes                  |
 *              | destination                                         |                     | extension headers ...                  |
 *              | options ...                                         |
 *
 *     extension header |next|length / 8 - 1| ...        fragment |next| 0 |offset / 8 |00|M| identification, 4 bytes |
 *     AH               |next|length / 4 - 2| ...
 *
 * Invariants: no byte at or beyond `size` is read, whatever the bytes say; every length is compared with what was received before it
 *             is used. A flow without drop has l4_offset + l4_size <= total_size <= size.
 *             What the receiver might read in another way than we do is dropped, not guessed: tiny first fragments, impossible ranges,
 *             options or extension headers that do not add up.
 * Threads:    any; no state.
 * Limits:     8 extension headers, 256 bytes of them. No jumbograms. Nothing inside ESP, nor behind AH over IPv4.
 * Source:     RFC 791, 8200, 7112 (whole header chain in the first fragment), 5095 (routing header 0), 6946 (atomic fragments),
 *             1858 and 3128 (tiny and overlapping fragments), 4443, 792.
 */
#include "parse.h"

#include <limits.h>
#include <netinet/in.h>
#include <string.h>

#include "csum.h"

enum { IPV4_HEADER = 20, IPV6_HEADER = 40 };
enum { IPV4_DF = 0x4000, IPV4_MF = 0x2000, IPV4_OFFSET = 0x1fff };
enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_LSRR = 131, OPTION_SSRR = 137 };   /* RFC 791 3.1 */
enum { EXT_MAX = 8, EXT_BYTES_MAX = 256, EXT_AH_MIN = 12, EXT_FRAGMENT = 8 };
enum { HBH_PAD1 = 0, HBH_JUMBO = 0xc2 };                                          /* RFC 8200 4.2, 2675 2 */
enum { TCP_HEADER = 20, UDP_HEADER = 8, SCTP_HEADER = 12, ICMP_HEADER = 8 };
enum { QUOTE_L4 = 8 };                            /* transport bytes that every ICMP error quotes, RFC 792 */
enum { TCP_FLAGS_AT = 13 };

static inline void set_mapped(uint8_t to[16], const uint8_t from[4])
{
	static const uint8_t prefix[12] = { [10] = 0xff, [11] = 0xff };

	memcpy(to, prefix, sizeof(prefix));
	memcpy(to + sizeof(prefix), from, 4);
}

/* ---- transport headers --------------------------------------------------------------------------------------------------- */

static bool icmp_is_error(uint8_t proto, uint8_t type)
{
	if (proto == IPPROTO_ICMPV6)
		return type < 128;                                     /* RFC 4443 2.1 */
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;   /* RFC 1122 3.2.2 */
}

static bool icmp_is_echo(uint8_t proto, uint8_t type)
{
	return proto == IPPROTO_ICMPV6 ? type == 128 || type == 129 : type == 8 || type == 0;
}

/* ICMP of the wrong family is just another protocol. */
static bool is_icmp(const struct canal_flow *flow)
{
	return flow->proto == (flow->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static inline void read_ports(const uint8_t *l4, struct canal_flow *flow)
{
	memcpy(&flow->sport_be, l4, 2);
	memcpy(&flow->dport_be, l4 + 2, 2);
}

static void read_icmp(const uint8_t *l4, struct canal_flow *flow)
{
	flow->icmp_type = l4[0];
	flow->icmp_code = l4[1];
	flow->l4_size = ICMP_HEADER;
	if (icmp_is_error(flow->proto, l4[0]))
		flow->flags |= CANAL_FLOW_ICMP_ERROR;
	if (icmp_is_echo(flow->proto, l4[0])) {
		memcpy(&flow->sport_be, l4 + 4, 2);
		flow->dport_be = flow->sport_be;
	}
}

/* `left` bytes at l4. A first fragment must hold the whole header, too: nobody can judge it otherwise. */
static inline enum canal_drop read_l4(const uint8_t *l4, uint32_t left, struct canal_flow *flow)
{
	if (likely(flow->proto == IPPROTO_TCP)) {
		if (left < TCP_HEADER)
			return CANAL_DROP_BAD_L4;
		uint32_t header_size = (uint32_t)(l4[12] >> 4) * 4;
		if (header_size < TCP_HEADER || header_size > left)
			return CANAL_DROP_BAD_L4;
		read_ports(l4, flow);
		flow->tcp_flags = l4[TCP_FLAGS_AT];
		flow->l4_size = (uint16_t)header_size;
	} else if (likely(flow->proto == IPPROTO_UDP)) {
		if (left < UDP_HEADER)
			return CANAL_DROP_BAD_L4;
		uint32_t udp_size = load_be16(l4 + 4);
		/* the first fragment of a datagram holds only its beginning */
		if (udp_size < UDP_HEADER || (udp_size > left && !(flow->flags & CANAL_FLOW_FRAG)))
			return CANAL_DROP_BAD_L4;
		read_ports(l4, flow);
		flow->l4_size = UDP_HEADER;
	} else if (is_icmp(flow)) {
		if (left < ICMP_HEADER)
			return CANAL_DROP_BAD_L4;
		read_icmp(l4, flow);
	} else if (flow->proto == IPPROTO_SCTP) {
		if (left < SCTP_HEADER)
			return CANAL_DROP_BAD_L4;
		read_ports(l4, flow);
		flow->l4_size = SCTP_HEADER;
	}
	return CANAL_DROP_NONE;
}

/* ---- fragments ----------------------------------------------------------------------------------------------------------- */

/* `payload` bytes of a fragment that starts at flow->frag_offset; `before` bytes of the reassembled packet's header count against
 * its largest size. */
static bool fragment_is_sane(const struct canal_flow *flow, uint32_t payload, uint32_t before)
{
	if (payload == 0 || before + flow->frag_offset + payload > CANAL_PACKET_MAX)
		return false;
	return !(flow->flags & CANAL_FLOW_MORE_FRAGS) || payload % 8 == 0;
}

static void set_fragment(struct canal_flow *flow, uint32_t offset, bool more)
{
	flow->frag_offset = (uint16_t)offset;
	flow->flags |= CANAL_FLOW_FRAG;
	if (offset)
		flow->flags |= CANAL_FLOW_LATER_FRAG;
	if (more)
		flow->flags |= CANAL_FLOW_MORE_FRAGS;
}

/* A later fragment has no ports, and one at 8 bytes would replace TCP's flags (RFC 1858 3.2.2). */
static enum canal_drop check_later_fragment(const struct canal_flow *flow)
{
	return flow->proto == IPPROTO_TCP && flow->frag_offset == 8 ? CANAL_DROP_BAD_L4 : CANAL_DROP_NONE;
}

/* ---- IPv4 ---------------------------------------------------------------------------------------------------------------- */

/* Can they be walked to their end, without a source route? */
static bool ipv4_options_are_sane(const uint8_t *options, uint32_t size)
{
	uint32_t at = 0;

	while (at < size && options[at] != OPTION_END) {
		if (options[at] == OPTION_NOP) {
			at++;
			continue;
		}
		if (options[at] == OPTION_LSRR || options[at] == OPTION_SSRR || size - at < 2)
			return false;
		if (options[at + 1] < 2 || options[at + 1] > size - at)
			return false;
		at += options[at + 1];
	}
	return true;
}

/* The sum's byte order does not matter for whether it comes out as all ones. */
static inline bool ipv4_checksum_is_right(const uint8_t *ip, uint32_t header_size)
{
	uint64_t sum = 0;

	for (uint32_t at = 0; at < header_size; at += 4) {
		uint32_t word;
		memcpy(&word, ip + at, 4);
		sum += word;
	}
	return csum_fold(sum) == 0xffff;
}

static enum canal_drop read_ipv4_fragment(const uint8_t *ip, uint32_t header_size, struct canal_flow *flow)
{
	uint32_t field = load_be16(ip + 6);

	set_fragment(flow, (field & IPV4_OFFSET) * 8, field & IPV4_MF);
	if (!fragment_is_sane(flow, flow->total_size - header_size, header_size))
		return CANAL_DROP_BAD_IP;
	if (flow->flags & CANAL_FLOW_LATER_FRAG)
		return check_later_fragment(flow);
	return read_l4(ip + header_size, flow->total_size - header_size, flow);
}

/* The header's fields; nothing here depends on a length. */
static inline void read_ipv4_header(const uint8_t *ip, uint32_t header_size, struct canal_flow *flow)
{
	set_mapped(flow->src, ip + 12);
	set_mapped(flow->dst, ip + 16);
	flow->family = 4;
	flow->tos = ip[1];
	flow->ttl = ip[8];
	flow->proto = ip[9];
	flow->frag_id = load_be16(ip + 4);
	flow->flags = (uint8_t)(ip[6] & IPV4_DF >> 8 ? CANAL_FLOW_DF : 0);
	flow->l4_offset = (uint16_t)header_size;
}

/* At least IPV4_HEADER bytes were received; header_size is what IHL says, >= IPV4_HEADER. */
static inline enum canal_drop parse_ipv4(const uint8_t *ip, uint32_t size, uint32_t header_size, struct canal_flow *flow)
{
	uint32_t total_size = load_be16(ip + 2);

	read_ipv4_header(ip, header_size, flow);
	flow->total_size = total_size;
	if (unlikely(total_size < header_size))
		return CANAL_DROP_BAD_IP;
	if (unlikely(total_size > size))
		return CANAL_DROP_SHORT;
	if (unlikely(!ipv4_checksum_is_right(ip, header_size)))
		return CANAL_DROP_BAD_IP;
	if (header_size > IPV4_HEADER) {
		flow->flags |= CANAL_FLOW_OPTIONS;
		if (!ipv4_options_are_sane(ip + IPV4_HEADER, header_size - IPV4_HEADER))
			return CANAL_DROP_IP_OPTION;
	}
	if (unlikely(load_be16(ip + 6) & (IPV4_MF | IPV4_OFFSET)))
		return read_ipv4_fragment(ip, header_size, flow);
	return read_l4(ip + header_size, total_size - header_size, flow);
}

/* ---- IPv6 ---------------------------------------------------------------------------------------------------------------- */

/* Options that a router must look at. A jumbo payload is one that we do not carry. */
static bool hop_by_hop_is_sane(const uint8_t *options, uint32_t size)
{
	uint32_t at = 0;

	while (at < size) {
		if (options[at] == HBH_PAD1) {
			at++;
			continue;
		}
		if (options[at] == HBH_JUMBO || size - at < 2 || options[at + 1] > size - at - 2)
			return false;
		at += 2u + options[at + 1];
	}
	return true;
}

static bool is_extension(uint8_t next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS || next == IPPROTO_AH ||
	       next == IPPROTO_FRAGMENT;
}

/* Bytes of the extension header `kind` at `header`, of which `left` >= 8 remain; 0 when it is refused. */
static uint32_t extension_size(uint8_t kind, const uint8_t *header, uint32_t left, bool first)
{
	uint32_t size = (header[1] + 1u) * 8;

	if (kind == IPPROTO_FRAGMENT)
		return EXT_FRAGMENT;
	if (kind == IPPROTO_AH)
		size = (header[1] + 2u) * 4;
	if (size > left)
		return 0;
	if (kind == IPPROTO_AH)
		return size < EXT_AH_MIN ? 0 : size;
	if (kind == IPPROTO_HOPOPTS)
		return first && hop_by_hop_is_sane(header + 2, size - 2) ? size : 0;
	if (kind == IPPROTO_ROUTING)
		return header[2] == 0 ? 0 : size;
	return size;
}

/* Follow the chain within `size` bytes to the transport header, or to the payload of a later fragment: sets proto, l4_offset and the
 * fragment's fields. *payload: where the fragment's payload starts. False when the chain is refused. */
static bool read_extensions(const uint8_t *ip, uint32_t size, struct canal_flow *flow, uint32_t *payload)
{
	uint32_t at = IPV6_HEADER;
	uint32_t count = 0;

	while (is_extension(flow->proto)) {
		const uint8_t *header = ip + at;
		if (count == EXT_MAX || size - at < 8)
			return false;
		uint32_t header_size = extension_size(flow->proto, header, size - at, count == 0);
		if (header_size == 0 || at + header_size > IPV6_HEADER + EXT_BYTES_MAX)
			return false;
		bool is_fragment = flow->proto == IPPROTO_FRAGMENT;
		flow->proto = header[0];
		flow->flags |= CANAL_FLOW_OPTIONS;
		at += header_size;
		count++;
		if (!is_fragment)
			continue;
		if (*payload)
			return false;                                  /* one fragment header is enough for anyone */
		*payload = at;
		flow->frag_id = load_be32(header + 4);
		if (load_be16(header + 2) & 0xfff9)                    /* else atomic: no fragment at all, RFC 6946 */
			set_fragment(flow, load_be16(header + 2) & 0xfff8, header[3] & 1);
		if (flow->flags & CANAL_FLOW_LATER_FRAG)
			break;
	}
	flow->l4_offset = (uint16_t)at;
	return true;
}

static void read_ipv6_header(const uint8_t *ip, struct canal_flow *flow)
{
	memcpy(flow->src, ip + 8, 16);
	memcpy(flow->dst, ip + 24, 16);
	flow->family = 6;
	flow->tos = (uint8_t)(load_be16(ip) >> 4);
	flow->ttl = ip[7];
	flow->proto = ip[6];
	flow->flags = CANAL_FLOW_DF;
	flow->l4_offset = IPV6_HEADER;
}

static enum canal_drop read_ipv6_rest(const uint8_t *ip, struct canal_flow *flow)
{
	uint32_t payload = 0;

	if (!read_extensions(ip, flow->total_size, flow, &payload))
		return CANAL_DROP_BAD_EXT;
	if (flow->flags & CANAL_FLOW_FRAG) {
		/* of the reassembled packet, the payload length counts: not the header, nor the fragment header that goes away */
		uint32_t before = payload - EXT_FRAGMENT - IPV6_HEADER;
		if (!fragment_is_sane(flow, flow->total_size - payload, before))
			return CANAL_DROP_BAD_EXT;
		if (flow->flags & CANAL_FLOW_LATER_FRAG)
			return check_later_fragment(flow);
	}
	return read_l4(ip + flow->l4_offset, flow->total_size - flow->l4_offset, flow);
}

/* At least IPV6_HEADER bytes were received. */
static enum canal_drop parse_ipv6(const uint8_t *ip, uint32_t size, struct canal_flow *flow)
{
	read_ipv6_header(ip, flow);
	flow->total_size = IPV6_HEADER + (uint32_t)load_be16(ip + 4);
	if (unlikely(flow->total_size > size))
		return CANAL_DROP_SHORT;
	if (unlikely(flow->total_size > CANAL_PACKET_MAX))
		return CANAL_DROP_TOO_LONG;
	if (likely(!is_extension(flow->proto)))
		return read_l4(ip + IPV6_HEADER, flow->total_size - IPV6_HEADER, flow);
	return read_ipv6_rest(ip, flow);
}

/* ---- any packet ---------------------------------------------------------------------------------------------------------- */

static enum canal_drop parse_any(const uint8_t *data, uint32_t size, struct canal_flow *flow)
{
	if (size == 0)
		return CANAL_DROP_SHORT;
	switch (data[0] >> 4) {
	case 4:
		if (size < IPV4_HEADER)
			return CANAL_DROP_SHORT;
		if ((data[0] & 15) * 4 < IPV4_HEADER)
			return CANAL_DROP_BAD_IP;
		return parse_ipv4(data, size, (data[0] & 15u) * 4, flow);
	case 6:
		return size < IPV6_HEADER ? CANAL_DROP_SHORT : parse_ipv6(data, size, flow);
	default:
		return CANAL_DROP_BAD_IP;
	}
}

enum canal_drop parse_packet(const uint8_t *data, uint32_t size, struct canal_flow *flow)
{
	enum canal_drop drop;

	memset(flow, 0, sizeof(*flow));
	if (likely(size >= IPV4_HEADER && data[0] == 0x45))
		drop = parse_ipv4(data, size, IPV4_HEADER, flow);   /* constant header size: no loop, no options */
	else
		drop = parse_any(data, size, flow);
	flow->drop = (uint16_t)drop;
	return drop;
}

int canal_parse(const uint8_t *bytes, const struct canal_span *spans, size_t n, struct canal_flow *flows)
{
	if (n > INT_MAX)
		return CANAL_ERANGE;
	for (size_t i = 0; i < n; i++)
		parse_packet(bytes + spans[i].offset, spans[i].size, &flows[i]);
	return (int)n;
}

/* ---- the packet inside an ICMP error ------------------------------------------------------------------------------------- */

/* Up to the transport header. Lengths and checksum of a quote are often stale (old stacks, NAT), so they are not looked at. */
static bool quoted_header(const uint8_t *ip, uint32_t size, uint8_t family, struct canal_flow *quoted)
{
	uint32_t payload = 0;

	if (family == 4) {
		if (size < IPV4_HEADER || ip[0] >> 4 != 4 || (ip[0] & 15) * 4 < IPV4_HEADER || (ip[0] & 15u) * 4 > size)
			return false;
		read_ipv4_header(ip, (ip[0] & 15u) * 4, quoted);
		if (load_be16(ip + 6) & (IPV4_MF | IPV4_OFFSET))
			set_fragment(quoted, (load_be16(ip + 6) & IPV4_OFFSET) * 8u, ip[6] & IPV4_MF >> 8);
		return true;
	}
	if (size < IPV6_HEADER || ip[0] >> 4 != 6)
		return false;
	read_ipv6_header(ip, quoted);
	return read_extensions(ip, size, quoted, &payload);
}

/* The first QUOTE_L4 bytes tell the flow of every protocol that has ports. */
static bool quoted_l4(const uint8_t *l4, uint32_t left, struct canal_flow *quoted)
{
	bool has_ports = quoted->proto == IPPROTO_TCP || quoted->proto == IPPROTO_UDP || quoted->proto == IPPROTO_SCTP;

	if (!has_ports && !is_icmp(quoted))
		return true;
	if (left < QUOTE_L4)
		return false;
	quoted->l4_size = QUOTE_L4;
	if (has_ports)
		read_ports(l4, quoted);
	else
		read_icmp(l4, quoted);
	if (quoted->proto == IPPROTO_TCP && left > TCP_FLAGS_AT)
		quoted->tcp_flags = l4[TCP_FLAGS_AT];
	return !(quoted->flags & CANAL_FLOW_ICMP_ERROR);               /* nobody may answer an error with an error */
}

bool parse_quoted(const uint8_t *data, const struct canal_flow *flow, struct canal_flow *quoted)
{
	uint32_t start = (uint32_t)flow->l4_offset + flow->l4_size;

	memset(quoted, 0, sizeof(*quoted));
	if (!(flow->flags & CANAL_FLOW_ICMP_ERROR))
		return false;
	const uint8_t *ip = data + start;
	quoted->total_size = flow->total_size - start;
	if (!quoted_header(ip, quoted->total_size, flow->family, quoted) || quoted->flags & CANAL_FLOW_LATER_FRAG)
		return false;
	return quoted_l4(ip + quoted->l4_offset, quoted->total_size - quoted->l4_offset, quoted);
}
