/*
 * tx.c - messages to the underlay, gathered and sent together.
 *
 * Place:      the last stage towards a peer. emit.c appends, pipeline.c flushes at the end of each batch.
 * Structure:  one queue a socket. A message is a run of outer payloads of equal size to one VTEP (the last may be shorter), which
 *             UDP_SEGMENT lets the kernel cut; the pieces stay where they were received, only headers were written anew:
 *
 *                 message ─► iov: [head 0][payload 0][head 1][payload 1] ... [head n][short payload n]
 *
 * Invariants: order within a queue is the order of appending, so a flow (one VTEP, one socket) is never reordered.
 *             Each message ends in exactly one of: sent, replayed datagram by datagram (the kernel refused UDP_SEGMENT), dropped with a reason.
 * Threads:    worker.
 * Limits:     65507 bytes (IPv4) and gso_segments_max segments a message; 64 messages a call.
 * Source:     udp(7), Linux net/ipv4/udp.c: gso_size + headers > MTU is EMSGSIZE, without a word in the error queue; EIO or EINVAL when the device or route cannot.
 */
#include "tx.h"

#include <errno.h>
#include <netinet/udp.h>
#include <string.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { UDP_PAYLOAD_MAX = 65487 };   /* 65535 less the IPv6 and UDP headers: right for both families */

struct port *tx_port(struct worker *w, const struct canal_vtep *vtep, uint32_t hash)
{
	struct tx_set *set = &w->dp->tx_sets[tx_set_of(vtep->encap, vtep->family)];
	uint32_t n = atomic_load_explicit(&set->n, memory_order_acquire);

	return n ? &w->dp->ports[set->port[hash % n]] : NULL;
}

static void address_of(const struct canal_vtep *vtep, struct sockaddr_storage *out, socklen_t *size)
{
	if (vtep->family == 4) {
		struct sockaddr_in *in = (struct sockaddr_in *)out;

		*in = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = vtep->port_be };
		memcpy(&in->sin_addr, vtep->addr + 12, 4);
		*size = sizeof *in;
	} else {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;

		*in6 = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = vtep->port_be };
		memcpy(&in6->sin6_addr, vtep->addr, 16);
		*size = sizeof *in6;
	}
}

static size_t control_add(uint8_t *control, size_t used, int level, int type, const void *value, size_t size)
{
	struct cmsghdr header = { .cmsg_len = CMSG_LEN(size), .cmsg_level = level, .cmsg_type = type };

	memset(control + used, 0, CMSG_SPACE(size));
	memcpy(control + used, &header, sizeof header);
	memcpy(control + used + CMSG_LEN(0), value, size);
	return used + CMSG_SPACE(size);
}

/* Lay out the mmsghdr of one message, or of one segment of it. */
static void header_fill(struct worker *w, struct tx_queue *q, uint32_t i, struct iovec *iov, uint32_t n_iov, bool segment)
{
	const struct tx_message *m = &q->messages[i];
	const struct canal_vtep *vtep = &w->tables->vteps[m->vtep];
	struct msghdr *h = &q->headers[i].msg_hdr;
	size_t used = 0;

	if (segment) {
		uint16_t size = (uint16_t)m->segment_size;

		used = control_add(q->control[i], used, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size);
	}
	if (m->tos) {
		int tos = m->tos;

		if (vtep->family == 4)
			used = control_add(q->control[i], used, IPPROTO_IP, IP_TOS, &tos, sizeof tos);
		else
			used = control_add(q->control[i], used, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof tos);
	}
	address_of(vtep, &q->addrs[i], &h->msg_namelen);
	h->msg_name = &q->addrs[i];
	h->msg_iov = iov;
	h->msg_iovlen = n_iov;
	h->msg_control = used ? q->control[i] : NULL;
	h->msg_controllen = used;
	h->msg_flags = 0;
	q->headers[i].msg_len = 0;
}

static void message_sent(struct worker *w, struct port *port, uint32_t packets, uint32_t inner_bytes)
{
	worker_count(w, CANAL_TX_UNDERLAY, packets);
	worker_count(w, CANAL_TX_UNDERLAY_BYTES, inner_bytes);
	stat_add(&port->stats.tx_packets, packets);
	stat_add(&port->stats.tx_bytes, inner_bytes);
}

static enum canal_drop drop_of(int error)
{
	switch (error) {
	case EAGAIN:
	case ENOBUFS:
	case ENOMEM:
		return CANAL_DROP_TX_AGAIN;
	case EMSGSIZE:
		return CANAL_DROP_TX_MSGSIZE;
	case EBADF:
	case ENETDOWN:
		return CANAL_DROP_PORT_DOWN;
	default:
		return CANAL_DROP_TX_ERROR;
	}
}

static void message_failed(struct worker *w, uint32_t packets, int error)
{
	w->counters.own.drop[drop_of(error)] += packets;
}

/* Send one header until the kernel takes or refuses it: 0 or an errno. The first error may be an old ICMP error of the socket, which the
 * next call no longer reports. */
static int send_one(struct worker *w, struct port *port, struct tx_queue *q, struct mmsghdr *header)
{
	int rc = 0;

	for (int attempt = 0; attempt < 3; attempt++) {
		rc = w->io->udp_send(w, port, header, 1);
		if (rc > 0)
			return 0;
		if (rc == -EAGAIN && (q->full || w->io->udp_wait(w, port) != 0)) {
			q->full = true;   /* all other ports wait meanwhile: not again for this flush */
			return EAGAIN;
		}
		if (rc == -EMSGSIZE || rc == -EIO || rc == -EINVAL)
			break;
	}
	return -rc;
}

/* The kernel does not segment on this socket: never ask again. */
static void gso_lost(struct worker *w, struct port *port, int error)
{
	if (!atomic_exchange_explicit(&port->gso_off, 1, memory_order_relaxed)) {
		worker_count(w, CANAL_GSO_FALLBACK, 1);
		worker_event(w, CANAL_EVENT_GSO_FALLBACK, port, NULL, (uint32_t)error);
	}
}

/* Send the segments of a refused message one by one. */
static void replay(struct worker *w, struct port *port, struct tx_queue *q, uint32_t i)
{
	struct tx_message m = q->messages[i];
	struct iovec *iov = &q->iov[m.first_iov];
	uint32_t left = m.n_iov;
	int error;

	for (uint32_t s = 0; s < m.n_segments; s++) {
		uint32_t size = 0, n = 0, want = m.segment_size, packets = s < m.packets ? 1 : 0;
		uint32_t share = m.inner_bytes / m.n_segments + (s == 0 ? m.inner_bytes % m.n_segments : 0);

		while (n < left && size < want)
			size += (uint32_t)iov[n++].iov_len;
		header_fill(w, q, i, iov, n, false);
		error = send_one(w, port, q, &q->headers[i]);
		if (error)
			message_failed(w, packets, error);
		else
			message_sent(w, port, packets, share);
		iov += n;
		left -= n;
	}
}

static void settle(struct worker *w, struct port *port, struct tx_queue *q, uint32_t i)
{
	struct tx_message *m = &q->messages[i];
	int error = send_one(w, port, q, &q->headers[i]);

	if (!error) {
		message_sent(w, port, m->packets, m->inner_bytes);
	} else if (m->n_segments > 1 && (error == EIO || error == EINVAL || error == EOPNOTSUPP)) {
		gso_lost(w, port, error);
		replay(w, port, q, i);
	} else if (m->n_segments > 1 && error == EMSGSIZE) {
		replay(w, port, q, i);   /* only of a plain datagram does the kernel say which size would fit: io_read_errors() hears it */
	} else {
		message_failed(w, m->packets, error);
	}
}

static void queue_flush(struct worker *w, struct port *port)
{
	struct tx_queue *q = port->tx;
	uint32_t done = 0;

	for (uint32_t i = 0; i < q->n; i++) {
		struct tx_message *m = &q->messages[i];

		header_fill(w, q, i, &q->iov[m->first_iov], m->n_iov, m->n_segments > 1);
		if (m->n_segments > 1)
			worker_count(w, CANAL_TX_SUPERPACKETS, 1);
	}
	while (done < q->n) {
		int sent = w->io->udp_send(w, port, q->headers + done, q->n - done);

		for (int i = 0; i < sent; i++)
			message_sent(w, port, q->messages[done + (uint32_t)i].packets, q->messages[done + (uint32_t)i].inner_bytes);
		if (sent > 0)
			done += (uint32_t)sent;
		else
			settle(w, port, q, done++);
	}
	q->n = 0;
	q->n_iov = 0;
	q->full = false;
}

void tx_flush(struct worker *w)
{
	for (uint32_t i = 0; i < w->n_dirty; i++)
		queue_flush(w, &w->dp->ports[w->dirty[i]]);
	w->n_dirty = 0;
}

/* Can this payload join the last message of the queue? */
static bool joins(const struct worker *w, const struct port *port, const struct tx_queue *q, uint32_t vtep, uint8_t tos, uint32_t size, uint32_t n_iov)
{
	const struct tx_message *m;

	if (!q->n || (w->dp->config.flags & CANAL_DP_NO_UDP_GSO) || atomic_load_explicit(&port->gso_off, memory_order_relaxed))
		return false;
	m = &q->messages[q->n - 1];
	return m->vtep == vtep && m->tos == tos && !m->closed && size <= m->segment_size && m->bytes + size <= UDP_PAYLOAD_MAX &&
	       m->n_segments < w->dp->config.gso_segments_max && q->n_iov + n_iov <= TX_IOV_MAX;
}

void tx_append(struct worker *w, struct port *port, uint32_t vtep, uint8_t tos, const struct iovec *iov, uint32_t n_iov,
               uint32_t packets, uint32_t inner_bytes)
{
	struct tx_queue *q = port->tx;
	uint32_t size = 0;
	struct tx_message *m;

	for (uint32_t i = 0; i < n_iov; i++)
		size += (uint32_t)iov[i].iov_len;
	if (!joins(w, port, q, vtep, tos, size, n_iov)) {
		if (q->n == TX_MESSAGES_MAX || q->n_iov + n_iov > TX_IOV_MAX)
			queue_flush(w, port);
		else if (q->n == 0)
			w->dirty[w->n_dirty++] = port->index;
		m = &q->messages[q->n++];
		*m = (struct tx_message){ .first_iov = q->n_iov, .segment_size = size, .vtep = vtep, .tos = tos };
	}
	m = &q->messages[q->n - 1];
	memcpy(&q->iov[q->n_iov], iov, n_iov * sizeof *iov);
	q->n_iov += n_iov;
	m->n_iov += n_iov;
	m->n_segments++;
	m->bytes += size;
	m->packets += packets;
	m->inner_bytes += inner_bytes;
	m->closed = size < m->segment_size;
}
