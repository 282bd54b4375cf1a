/* parse.h - untrusted bytes -> struct canal_flow; see parse.c. */
#ifndef CANAL_PARSE_H
#define CANAL_PARSE_H
#include "packet.h"

/* Fill *flow from the IP packet at data, of which `size` bytes were received. Returns flow->drop. Trailing bytes beyond the IP
 * total length are allowed (flow->total_size says where the packet ends). Does not verify transport checksums.
 * The IPv4 header checksum IS verified (a router must). */
enum canal_drop parse_packet(const uint8_t *data, uint32_t size, struct canal_flow *flow);

/* Fill *quoted from the packet that the ICMP error `p` quotes (often cut short after 8 transport bytes).
 * Returns false when the quote is too short to tell its flow. */
bool parse_quoted(const uint8_t *data, const struct canal_flow *flow, struct canal_flow *quoted);
#endif
