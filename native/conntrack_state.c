/*
 * conntrack_state.c - the states of a flow, as data.
 *
 * Place:      a part of conntrack.c; knows nothing of tables and time.
 * Structure:
 *
 *     TCP        SYN_SENT ─► SYN_RECV ─► ESTABLISHED ─► FIN_WAIT ─► CLOSING ─► TIME_WAIT        RST, from any: CLOSED
 *                                        ▲ a flow that was there before us starts here; a SYN in TIME_WAIT or CLOSED opens a new flow
 *     others     NEW ─► REPLIED
 *
 * Invariants: every state has a row for every kind of segment: a packet never leaves the table by surprise. Sequence numbers are not
 *             tracked, so no packet of a live flow is refused for them, and an RST that its receiver ignores costs the flow only its
 *             long timeout: packets after it keep the entry alive as CLOSED.
 * Threads:    worker.
 * Source:     RFC 9293 3.3.2, 3.10.7; the timeouts are of the same order as nf_conntrack's. A machine as a table: NPF's npf_state_tcp.c.
 */
#include "conntrack_state.h"

#include <netinet/in.h>

enum tcp_flag { FIN = 1, SYN = 2, RST = 4, ACK = 16 };
enum tcp_case { CASE_SYN, CASE_SYNACK, CASE_ACK, CASE_FIN, CASE_RST, CASES, CASE_BAD = CASES };

/* RFC 9293: every segment but the first SYN and an RST has ACK; SYN, FIN and RST exclude each other. Scanners send the rest. */
static enum tcp_case tcp_case(uint8_t flags)
{
	switch (flags & (FIN | SYN | RST | ACK)) {
	case SYN:
		return CASE_SYN;
	case SYN | ACK:
		return CASE_SYNACK;
	case ACK:
		return CASE_ACK;
	case FIN | ACK:
		return CASE_FIN;
	case RST:
	case RST | ACK:
		return CASE_RST;
	default:
		return CASE_BAD;
	}
}

#define SS CANAL_CT_SYN_SENT
#define SR CANAL_CT_SYN_RECV
#define ES CANAL_CT_ESTABLISHED
#define FW CANAL_CT_FIN_WAIT
#define CG CANAL_CT_CLOSING
#define TW CANAL_CT_TIME_WAIT
#define CL CANAL_CT_CLOSED

/* [state][side][segment]. Side 0 is the original direction until someone closes; from FIN_WAIT on, the side that closed first. */
static const uint8_t tcp_next[CANAL_CT_STATES][2][CASES] = {
	/*        SYN SYNACK ACK FIN RST */
	[SS] = { { SS, SS,   SS, SS, CL },     /* SYN again; nothing else makes sense before an answer                          */
	         { SR, SR,   SS, SS, CL } },   /* SYN: simultaneous open; ACK: the other end remembers an older connection      */
	[SR] = { { SR, ES,   ES, FW, CL },     /* SYN again; SYN+ACK: simultaneous open complete; ACK: handshake complete       */
	         { SR, SR,   ES, FW, CL } },   /* SYN+ACK again; ACK: data early (fast open), or simultaneous open complete     */
	[ES] = { { ES, ES,   ES, FW, CL },     /* SYN: the end restarted, the other one will say so with ACK and get an RST     */
	         { ES, ES,   ES, FW, CL } },   /* SYN+ACK again: the last ACK of the handshake was lost                         */
	[FW] = { { FW, FW,   FW, FW, CL },     /* FIN again; ACKs of what the other side still sends                            */
	         { FW, FW,   FW, CG, CL } },   /* half-closed: data goes on; FIN: both have closed                              */
	[CG] = { { CG, CG,   TW, CG, CL },     /* ACK of the second FIN: done                                                   */
	         { CG, CG,   CG, CG, CL } },   /* FIN again, ACK of the first FIN (simultaneous close)                          */
	[TW] = { { TW, TW,   TW, TW, CL },     /* the last ACK again; SYN is seen as a new flow before it comes here            */
	         { TW, TW,   TW, TW, CL } },   /* FIN again: the last ACK was lost                                              */
	[CL] = { { CL, CL,   CL, CL, CL },     /* on their way when the RST passed, or its receiver did not believe it          */
	         { CL, CL,   CL, CL, CL } },
};

/* What a segment that belongs to no flow opens; CANAL_CT_STATES: nothing. */
static const uint8_t tcp_first[CASES] = {
	[CASE_SYN] = SS, [CASE_SYNACK] = ES, [CASE_ACK] = ES, [CASE_FIN] = CANAL_CT_STATES, [CASE_RST] = CANAL_CT_STATES,
};

static const uint32_t tcp_timeout_ms[CANAL_CT_STATES] = {
	[SS] = 60 * 1000,
	[SR] = 60 * 1000,
	[ES] = 24 * 3600 * 1000,
	[FW] = 60 * 1000,
	[CG] = 60 * 1000,
	[TW] = 60 * 1000,
	[CL] = 10 * 1000,
};
enum { TIMEOUT_ONE_WAY_MS = 300 * 1000 };   /* TCP established as it seems, but only one side was heard so far */
enum { TIMEOUT_UDP_MS = 30 * 1000, TIMEOUT_UDP_REPLIED_MS = 120 * 1000 };
enum { TIMEOUT_ICMP_MS = 30 * 1000, TIMEOUT_OTHER_MS = 600 * 1000 };

bool ct_state_open(struct ct_entry *entry, const struct canal_flow *flow)
{
	entry->state = CANAL_CT_NEW;
	if (flow->flags & (CANAL_FLOW_ICMP_ERROR | CANAL_FLOW_LATER_FRAG))
		return false;
	if (flow->proto == IPPROTO_TCP) {
		enum tcp_case segment = tcp_case(flow->tcp_flags);

		entry->state = segment == CASE_BAD ? CANAL_CT_STATES : tcp_first[segment];
	}
	return entry->state != CANAL_CT_STATES;
}

bool ct_state_advance(struct ct_entry *entry, const struct canal_flow *flow, uint32_t reply)
{
	enum tcp_case segment;
	uint32_t side;

	if (entry->proto != IPPROTO_TCP) {
		if (reply)
			entry->state = CANAL_CT_REPLIED;
		return true;
	}
	segment = tcp_case(flow->tcp_flags);
	if (segment == CASE_BAD)
		return false;
	side = entry->state < FW ? reply : reply ^ entry->closer;
	if (entry->state < FW && segment == CASE_FIN)
		entry->closer = (uint8_t)reply;
	entry->state = tcp_next[entry->state][side][segment];
	return true;
}

uint32_t ct_state_timeout_ms(const struct ct_entry *entry)
{
	switch (entry->proto) {
	case IPPROTO_TCP:
		if (entry->state == ES && entry->packets[1] == 0)
			return TIMEOUT_ONE_WAY_MS;
		return tcp_timeout_ms[entry->state];
	case IPPROTO_UDP:
		return entry->state == CANAL_CT_REPLIED ? TIMEOUT_UDP_REPLIED_MS : TIMEOUT_UDP_MS;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return TIMEOUT_ICMP_MS;
	default:
		return TIMEOUT_OTHER_MS;
	}
}

/* The type that answers a query; every other message is answered by its own kind. */
static uint8_t answer_to(uint8_t icmp_type)
{
	switch (icmp_type) {
	case 8:                  /* echo */
		return 0;
	case 13:                 /* timestamp */
	case 15:                 /* information */
	case 17:                 /* address mask */
	case 128:                /* echo, ICMPv6 */
	case 139:                /* node information, ICMPv6 */
		return (uint8_t)(icmp_type + 1);
	default:
		return icmp_type;
	}
}

bool ct_state_reopens(const struct ct_entry *entry, const struct canal_flow *flow, bool reply)
{
	switch (entry->proto) {
	case IPPROTO_TCP:
		return entry->state >= TW && tcp_case(flow->tcp_flags) == CASE_SYN;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return reply ? flow->icmp_type != answer_to(entry->icmp_type)
		             : flow->icmp_type != entry->icmp_type || flow->icmp_code != entry->icmp_code;
	default:
		return false;
	}
}

bool ct_state_settled(const struct ct_entry *entry)
{
	if (entry->packets[1] == 0 || entry->verdict == CANAL_DENY)
		return false;
	return entry->proto != IPPROTO_TCP || (entry->state >= ES && entry->state < TW);
}
