/* icmp.h - the errors that we originate; see icmp.c. */
#ifndef CANAL_ICMP_H
#define CANAL_ICMP_H
#include "packet.h"

enum icmp_kind { ICMP_NO_ROUTE, ICMP_PROHIBITED, ICMP_TOO_BIG, ICMP_TIME_EXCEEDED };
enum { ICMP_ERROR_MAX = 1280 };    /* bytes of the largest error we write (IPv6 minimum MTU; IPv4: 576) */

/* Token bucket, in thousandths of a token; full while last_ms is 0. */
struct icmp_limiter { uint32_t per_s; uint32_t tokens; uint64_t last_ms; };
bool icmp_allow(struct icmp_limiter *limiter, uint64_t now_ms);

/* Write the whole IP packet of the error about `p` to out[ICMP_ERROR_MAX]; returns its size, or 0 when RFC 1122 / 4443 forbid one:
 * about ICMP errors, later fragments, multicast or broadcast, a source that names no single host, or when router is all zero.
 * The quoted packet is the first bytes of p as received (TTL not yet decremented is the caller's business; checksum of a partial packet
 * is quoted as it is). mtu_bytes: ICMP_TOO_BIG only. IPv4 quotes as much as fits 576 bytes, IPv6 1280. TTL 64, DF clear, id 0, checksums final. */
uint32_t icmp_error(const struct packet *p, enum icmp_kind kind, uint32_t mtu_bytes, const uint8_t router[16], uint8_t *out);
#endif
