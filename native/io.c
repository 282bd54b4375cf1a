/*
 * io.c - the worker's system calls.
 *
 * Place:      first and last on every packet's way. worker.c reads through it, emit.c and tx.c write through io_kernel.
 * Structure:  a TUN brings one packet or superpacket a read, packed one after the other:
 *
 *                 tun_arena: [headroom|vnet|packet 0]..[headroom|vnet|packet 1]..
 *
 *             a socket brings many datagrams a call, each into a buffer of its own, since UDP_GRO may fill 64 KiB.
 *
 *             A socket that only sends is not waited for: the kernel would ring for each of its packets that leaves (sock_wfree). Its
 *             errors are read when a call fails, and an ICMP error fails the next one.
 * Invariants: never a byte used that was not received: size is what the call returned.
 * Threads:    worker.
 * Source:     tun.rst, udp(7), ip(7) (IP_RECVERR), Linux net/ipv4/udp.c (UDP_GRO control message).
 */
#include "io.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { UDP_BUFFER = CANAL_HEADROOM + READ_BYTES, ERRORS_PER_CALL = 32, FULL_WAIT_MS = 2 };

/* Count a system call that failed; returns errno. */
static int failure(struct worker *w, enum canal_call call)
{
	int error = errno;

	if (error > 0 && error < CANAL_ERRNO_MAX)
		stat_add(&w->errors[call][error], 1);
	return error;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

static int kernel_tun_write(struct worker *w, const struct port *port, const struct iovec *iov, uint32_t n_iov)
{
	ssize_t rc;
	int error;

	do {
		worker_count(w, CANAL_SYSCALLS, 1);
		rc = n_iov == 1 ? write(port->fd, iov->iov_base, iov->iov_len) : writev(port->fd, iov, (int)n_iov);
		if (likely(rc >= 0))
			return 0;
		error = failure(w, CANAL_CALL_WRITE);
	} while (error == EINTR);
	return -error;
}

static int kernel_udp_send(struct worker *w, const struct port *port, struct mmsghdr *headers, uint32_t n)
{
	int rc, error;

	do {
		worker_count(w, CANAL_SYSCALLS, 1);
		rc = sendmmsg(port->fd, headers, n, MSG_DONTWAIT);
		if (likely(rc >= 0))
			return rc;
		error = failure(w, CANAL_CALL_SEND);
	} while (error == EINTR);
	if ((port->flags & CANAL_PORT_TX_ONLY) && error != EAGAIN)
		io_read_errors(w, port);
	return -error;
}

static int kernel_udp_wait(struct worker *w, const struct port *port)
{
	struct pollfd full = { .fd = port->fd, .events = POLLOUT };

	worker_count(w, CANAL_SYSCALLS, 1);
	return poll(&full, 1, FULL_WAIT_MS) > 0 && (full.revents & POLLOUT) ? 0 : -EAGAIN;
}

const struct io_ops io_kernel = { .tun_write = kernel_tun_write, .udp_send = kernel_udp_send, .udp_wait = kernel_udp_wait };

/* ---- reading a TUN ------------------------------------------------------------------------------------------------------- */

static bool passing(int error)
{
	return error == EAGAIN || error == EINTR || error == ENOBUFS || error == ENOMEM;
}

uint32_t io_read_tun(struct worker *w, struct port *port, int *failed)
{
	uint32_t at = 0, n = 0;

	*failed = 0;
	while (n < CANAL_BATCH_MAX && at < TUN_BATCH_BYTES) {
		uint8_t *data = w->tun_arena + at + CANAL_HEADROOM;
		ssize_t rc = read(port->fd, data - CANAL_VNET_HDR_SIZE, CANAL_VNET_HDR_SIZE + READ_BYTES);

		worker_count(w, CANAL_SYSCALLS, 1);
		if (rc < 0) {
			int error = n && errno == EAGAIN ? EAGAIN : failure(w, CANAL_CALL_READ);   /* after some packets that is the end */

			if (!passing(error))
				*failed = error;
			w->stumbled = true;
			break;
		}
		if (rc < CANAL_VNET_HDR_SIZE)
			break;
		w->packets[n].data = data;
		w->packets[n].size = (uint32_t)rc - CANAL_VNET_HDR_SIZE;
		n++;
		at += (CANAL_HEADROOM + (uint32_t)rc + 63) & ~63u;
	}
	return n;
}

/* ---- receiving datagrams ------------------------------------------------------------------------------------------------- */

struct receive {
	struct mmsghdr headers[DATAGRAMS_MAX];
	struct sockaddr_storage addrs[DATAGRAMS_MAX];
	struct iovec iov[DATAGRAMS_MAX];
	uint8_t control[DATAGRAMS_MAX][128] __attribute__((aligned(8)));
};

static void address_from(const struct sockaddr_storage *from, uint8_t addr[16])
{
	if (from->ss_family == AF_INET) {
		memset(addr, 0, 10);
		memset(addr + 10, 0xff, 2);
		memcpy(addr + 12, &((const struct sockaddr_in *)from)->sin_addr, 4);
	} else {
		memcpy(addr, &((const struct sockaddr_in6 *)from)->sin6_addr, 16);
	}
}

static void read_control(struct msghdr *h, struct datagram *d)
{
	int value;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
			memcpy(&value, CMSG_DATA(c), sizeof value);
			d->gso_size = (uint16_t)value;
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			d->tos = *CMSG_DATA(c);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
			memcpy(&value, CMSG_DATA(c), sizeof value);
			d->tos = (uint8_t)value;
		}
	}
}

uint32_t io_receive(struct worker *w, struct port *port, int *failed)
{
	struct receive r;
	int rc;

	*failed = 0;
	for (uint32_t i = 0; i < DATAGRAMS_MAX; i++) {
		r.iov[i] = (struct iovec){ .iov_base = w->udp_arena + (size_t)i * UDP_BUFFER + CANAL_HEADROOM, .iov_len = READ_BYTES };
		r.headers[i].msg_hdr = (struct msghdr){ .msg_name = &r.addrs[i], .msg_namelen = sizeof r.addrs[i], .msg_iov = &r.iov[i], .msg_iovlen = 1,
		                                        .msg_control = r.control[i], .msg_controllen = sizeof r.control[i] };
	}
	worker_count(w, CANAL_SYSCALLS, 1);
	rc = recvmmsg(port->fd, r.headers, DATAGRAMS_MAX, MSG_DONTWAIT, NULL);
	if (rc < 0) {
		/* An ICMP error of something sent earlier is reported once; only a dead descriptor stays. */
		int error = failure(w, CANAL_CALL_RECEIVE);

		if (error == EBADF || error == ENOTSOCK)
			*failed = error;
		w->stumbled = true;
		return 0;
	}
	for (int i = 0; i < rc; i++) {
		struct datagram *d = &w->datagrams[i];

		*d = (struct datagram){ .data = r.iov[i].iov_base, .size = r.headers[i].msg_len, .truncated = r.headers[i].msg_hdr.msg_flags & MSG_TRUNC };
		address_from(&r.addrs[i], d->addr);
		read_control(&r.headers[i].msg_hdr, d);
	}
	return (uint32_t)rc;
}

/* ---- errors of what was sent --------------------------------------------------------------------------------------------- */

static void read_error(struct worker *w, const struct port *port, struct msghdr *h, const struct sockaddr_storage *to)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		bool v4 = c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR;
		bool v6 = c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR;
		struct sock_extended_err e;
		uint8_t addr[16];

		if (!v4 && !v6)
			continue;
		memcpy(&e, CMSG_DATA(c), sizeof e);
		if (e.ee_errno != EMSGSIZE)
			continue;
		address_from(to, addr);
		worker_event(w, CANAL_EVENT_MTU, port, addr, e.ee_info);
	}
}

void io_read_errors(struct worker *w, const struct port *port)
{
	socklen_t size = sizeof(int);
	int pending;

	/* an error that found no room in the queue would be reported again and again */
	getsockopt(port->fd, SOL_SOCKET, SO_ERROR, &pending, &size);
	for (int i = 0; i < ERRORS_PER_CALL; i++) {
		uint8_t control[512] __attribute__((aligned(8))), byte;
		struct sockaddr_storage to = { .ss_family = AF_UNSPEC };
		struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
		struct msghdr h = { .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &iov, .msg_iovlen = 1,
		                    .msg_control = control, .msg_controllen = sizeof control };

		worker_count(w, CANAL_SYSCALLS, 1);
		if (recvmsg(port->fd, &h, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
			return;
		if (to.ss_family != AF_UNSPEC)
			read_error(w, port, &h, &to);
	}
}
