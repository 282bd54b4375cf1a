/*
 * icmp.c - the errors that we originate, as a router would.
 *
 * Place:      called by pipeline.c for packets that it drops and whose sender should know; the result is routed like any packet.
 * Structure:
 *
 *     IPv4 20 or IPv6 40       ICMP 8                                    quote: the beginning of the packet as received
 *     | router -> source |     | type | code | checksum | 0   | MTU  |   | IP | L4 | payload ...
 *                              | type | code | checksum |    MTU     |   (ICMPv6 packet too big)
 *
 * Invariants: never an error about an error, a later fragment, or anything that did not come from, or was not sent to, a single host
 *             (RFC 1122 3.2.2, RFC 4443 2.4 e): each could multiply. The quote ends with what was received.
 * Threads:    any; the limiter belongs to one worker.
 * Limits:     576 bytes (IPv4, RFC 1812 4.3.2.3), 1280 bytes (IPv6, RFC 4443 2.4 c).
 * Source:     RFC 792, 1191 (MTU), 1812 4.3 and 5.2.7, 4443.
 */
#include "icmp.h"

#include <netinet/in.h>
#include <string.h>

#include "csum.h"

enum { IPV4_HEADER = 20, IPV6_HEADER = 40, ICMP_HEADER = 8 };
enum { IPV4_ERROR_MAX = 576, IPV6_ERROR_MAX = 1280 };
enum { ICMP_TTL = 64, ICMP_TOS = 0xc0 };      /* internetwork control: RFC 1812 4.3.2.5 */
enum { ICMPV6_REDIRECT = 137 };
enum { TOKEN = 1000, BURST_PER_S = 5 };       /* the bucket holds what a fifth of a second earns, at least one token */

_Static_assert((int)ICMP_ERROR_MAX >= (int)IPV4_ERROR_MAX && (int)ICMP_ERROR_MAX >= (int)IPV6_ERROR_MAX, "room for the largest error");

struct icmp_code { uint8_t type4, code4, type6, code6; };

static const struct icmp_code codes[] = {
	[ICMP_NO_ROUTE] = { 3, 0, 1, 0 },         /* network unreachable; no route to destination */
	[ICMP_PROHIBITED] = { 3, 13, 1, 1 },      /* administratively prohibited */
	[ICMP_TOO_BIG] = { 3, 4, 2, 0 },          /* fragmentation needed; packet too big */
	[ICMP_TIME_EXCEEDED] = { 11, 0, 3, 0 },
};

/* Tokens are counted in thousandths, which is what one per second earns in a millisecond: no rounding, whatever the rate. */
bool icmp_allow(struct icmp_limiter *limiter, uint64_t now_ms)
{
	uint64_t burst = (uint64_t)limiter->per_s * TOKEN / BURST_PER_S;
	uint64_t tokens = limiter->tokens;

	if (limiter->per_s == 0)
		return false;
	if (burst < TOKEN)
		burst = TOKEN;
	if (limiter->last_ms == 0)                    /* a limiter of zeros starts full */
		tokens = burst;
	else if (now_ms > limiter->last_ms)
		tokens += (now_ms - limiter->last_ms < TOKEN ? now_ms - limiter->last_ms : TOKEN) * limiter->per_s;
	if (tokens > burst)
		tokens = burst;
	if (now_ms > limiter->last_ms || limiter->last_ms == 0)
		limiter->last_ms = now_ms ? now_ms : 1;
	limiter->tokens = (uint32_t)(tokens >= TOKEN ? tokens - TOKEN : tokens);
	return tokens >= TOKEN;
}

/* ---- may we? --------------------------------------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t addr[16])
{
	static const uint8_t zero[16];

	return memcmp(addr, zero, sizeof(zero)) == 0;
}

/* Unspecified and loopback addresses name no host on the network; multicast, broadcast and reserved ones no single one. */
static bool is_single_host(const uint8_t addr[16], uint8_t family)
{
	static const uint8_t loopback6[16] = { [15] = 1 };

	if (family == 4)
		return addr[12] != 0 && addr[12] != 127 && addr[12] < 224;
	return addr[0] != 0xff && !is_zero(addr) && memcmp(addr, loopback6, sizeof(loopback6)) != 0;
}

static bool is_group(const uint8_t addr[16], uint8_t family)
{
	return family == 4 ? addr[12] >= 224 : addr[0] == 0xff;
}

static bool may_answer(const struct canal_flow *flow, const uint8_t router[16])
{
	if (flow->flags & (CANAL_FLOW_ICMP_ERROR | CANAL_FLOW_LATER_FRAG) || is_zero(router))
		return false;
	if (flow->proto == IPPROTO_ICMPV6 && flow->icmp_type == ICMPV6_REDIRECT)
		return false;
	return is_single_host(flow->src, flow->family) && !is_group(flow->dst, flow->family);
}

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static uint32_t write_ipv4(const struct packet *p, const struct icmp_code *code, uint32_t mtu_bytes, const uint8_t router[16],
                           uint32_t quote_size, uint8_t *out)
{
	uint8_t *icmp = out + IPV4_HEADER;
	uint32_t icmp_size = ICMP_HEADER + quote_size;

	out[0] = 0x45;
	out[1] = ICMP_TOS;
	store_be16(out + 2, IPV4_HEADER + icmp_size);
	out[8] = ICMP_TTL;
	out[9] = IPPROTO_ICMP;
	memcpy(out + 12, router + 12, 4);
	memcpy(out + 16, p->flow.src + 12, 4);
	csum_ipv4(out, IPV4_HEADER);

	icmp[0] = code->type4;
	icmp[1] = code->code4;
	store_be16(icmp + 6, min_u32(mtu_bytes, 0xffff));
	store_be16(icmp + 2, (uint16_t)~csum_fold(csum_add(icmp, icmp_size, 0)));
	return IPV4_HEADER + icmp_size;
}

static uint32_t write_ipv6(const struct packet *p, const struct icmp_code *code, uint32_t mtu_bytes, const uint8_t router[16],
                           uint32_t quote_size, uint8_t *out)
{
	uint8_t *icmp = out + IPV6_HEADER;
	uint32_t icmp_size = ICMP_HEADER + quote_size;

	out[0] = 0x60;
	store_be16(out + 4, icmp_size);
	out[6] = IPPROTO_ICMPV6;
	out[7] = ICMP_TTL;
	memcpy(out + 8, router, 16);
	memcpy(out + 24, p->flow.src, 16);

	icmp[0] = code->type6;
	icmp[1] = code->code6;
	store_be32(icmp + 4, mtu_bytes);
	/* the addresses of the pseudo header lie right before the ICMP header */
	uint64_t sum = csum_add(out + 8, 32 + icmp_size, icmp_size + IPPROTO_ICMPV6);
	store_be16(icmp + 2, (uint16_t)~csum_fold(sum));
	return IPV6_HEADER + icmp_size;
}

uint32_t icmp_error(const struct packet *p, enum icmp_kind kind, uint32_t mtu_bytes, const uint8_t router[16], uint8_t *out)
{
	bool v4 = p->flow.family == 4;
	uint32_t headers_size = (v4 ? IPV4_HEADER : IPV6_HEADER) + ICMP_HEADER;
	uint32_t received = min_u32(p->size, p->flow.total_size);
	uint32_t quote_size = min_u32(received, (v4 ? IPV4_ERROR_MAX : IPV6_ERROR_MAX) - headers_size);
	uint32_t mtu = kind == ICMP_TOO_BIG ? mtu_bytes : 0;

	if (!may_answer(&p->flow, router))
		return 0;
	memset(out, 0, headers_size);
	memcpy(out + headers_size, p->data, quote_size);
	return v4 ? write_ipv4(p, &codes[kind], mtu, router, quote_size, out) : write_ipv6(p, &codes[kind], mtu, router, quote_size, out);
}
