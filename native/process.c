/*
 * process.c - the whole pipeline without a system call, for tests, benchmarks and explanations.
 *
 * Place:      canal_process() stands in for io.c: frames come from the caller's bytes and leave into the caller's bytes.
 * Invariants: the same code as the worker runs; only struct io_ops differs.
 * Threads:    control, while no worker runs.
 */
#include <errno.h>
#include <netinet/udp.h>
#include <string.h>

#include "io.h"
#include "pipeline.h"
#include "worker.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

struct capture {
	uint8_t *out;
	size_t size, used;
	struct canal_frame *frames;
	size_t n, max;
	bool overflow;
};

/* Gather one frame; NULL and overflow when the caller's memory is full. */
static struct canal_frame *capture_frame(struct capture *c, const struct iovec *iov, size_t n_iov)
{
	struct canal_frame *frame;
	size_t size = 0;

	for (size_t i = 0; i < n_iov; i++)
		size += iov[i].iov_len;
	if (c->n == c->max || c->size - c->used < size) {
		c->overflow = true;
		return NULL;
	}
	frame = &c->frames[c->n++];
	*frame = (struct canal_frame){ .offset = (uint32_t)c->used, .size = (uint32_t)size };
	for (size_t i = 0; i < n_iov; i++) {
		memcpy(c->out + c->used, iov[i].iov_base, iov[i].iov_len);
		c->used += iov[i].iov_len;
	}
	return frame;
}

static int capture_tun(struct worker *w, const struct port *port, const struct iovec *iov, uint32_t n_iov)
{
	struct canal_frame *frame = capture_frame(w->io_context, iov, n_iov);

	if (!frame)
		return -ENOBUFS;
	frame->port = port->index;
	return 0;
}

static void capture_control(struct canal_frame *frame, struct msghdr *h)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_SEGMENT)
			memcpy(&frame->gso_size, CMSG_DATA(c), sizeof frame->gso_size);
		else
			frame->tos = *CMSG_DATA(c);
	}
}

static int capture_udp(struct worker *w, const struct port *port, struct mmsghdr *headers, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct msghdr *h = &headers[i].msg_hdr;
		struct canal_frame *frame = capture_frame(w->io_context, h->msg_iov, h->msg_iovlen);

		if (!frame)
			return i ? (int)i : -ENOBUFS;
		frame->port = port->index;
		capture_control(frame, h);
		if (((struct sockaddr *)h->msg_name)->sa_family == AF_INET) {
			struct sockaddr_in *in = h->msg_name;

			memset(frame->addr + 10, 0xff, 2);
			memcpy(frame->addr + 12, &in->sin_addr, 4);
			frame->port_be = in->sin_port;
		} else {
			struct sockaddr_in6 *in6 = h->msg_name;

			memcpy(frame->addr, &in6->sin6_addr, 16);
			frame->port_be = in6->sin6_port;
		}
	}
	return (int)n;
}

static int capture_wait(struct worker *w, const struct port *port)
{
	(void)w;
	(void)port;
	return -EAGAIN;
}

static const struct io_ops io_capture = { .tun_write = capture_tun, .udp_send = capture_udp, .udp_wait = capture_wait };

/* Lay up to one batch of frames of one TUN into the arena, as io_read_tun would. */
static uint32_t lay_tun(struct worker *w, const uint8_t *bytes, const struct canal_frame *in, size_t n)
{
	uint32_t at = 0, count = 0;

	while (count < n && count < CANAL_BATCH_MAX && at < TUN_BATCH_BYTES && in[count].port == in[0].port) {
		uint8_t *data = w->tun_arena + at + CANAL_HEADROOM;
		uint32_t size = in[count].size;

		if (size < CANAL_VNET_HDR_SIZE || size > CANAL_VNET_HDR_SIZE + READ_BYTES)
			break;
		memcpy(data - CANAL_VNET_HDR_SIZE, bytes + in[count].offset, size);
		w->packets[count].data = data;
		w->packets[count].size = size - CANAL_VNET_HDR_SIZE;
		at += (CANAL_HEADROOM + size + 63) & ~63u;
		count++;
	}
	return count;
}

static uint32_t lay_underlay(struct worker *w, const uint8_t *bytes, const struct canal_frame *in, size_t n)
{
	uint32_t count = 0;

	while (count < n && count < DATAGRAMS_MAX && in[count].port == in[0].port) {
		struct datagram *d = &w->datagrams[count];
		uint8_t *data = w->udp_arena + (size_t)count * (CANAL_HEADROOM + READ_BYTES) + CANAL_HEADROOM;
		bool truncated = in[count].size > READ_BYTES;
		uint32_t size = truncated ? READ_BYTES : in[count].size;

		memcpy(data, bytes + in[count].offset, size);
		*d = (struct datagram){ .data = data, .size = size, .gso_size = in[count].gso_size, .tos = in[count].tos, .truncated = truncated };
		memcpy(d->addr, in[count].addr, 16);
		count++;
	}
	return count;
}

/* One batch of frames that came in by the same port; returns how many it took, 0 when the first is impossible. */
static uint32_t run_batch(struct worker *w, const uint8_t *bytes, const struct canal_frame *in, size_t n)
{
	struct port *port = &w->dp->ports[in[0].port];
	uint32_t count;

	if (port->kind == CANAL_PORT_UNDERLAY) {
		count = lay_underlay(w, bytes, in, n);
		pipeline_from_underlay(w, port, count);
	} else {
		count = lay_tun(w, bytes, in, n);
		if (count)
			pipeline_from_tun(w, port, count);
	}
	return count;
}

int canal_process(struct canal_dp *dp, const uint8_t *bytes, const struct canal_frame *in, size_t n, uint64_t now_ms,
                  uint8_t *out, size_t out_size, struct canal_frame *out_frames, size_t n_out)
{
	struct capture capture = { .out = out, .size = out_size, .frames = out_frames, .max = n_out };
	struct worker *w = dp->worker;
	int rc = CANAL_OK;

	if (atomic_load_explicit(&dp->running, memory_order_acquire))
		return CANAL_EBUSY;
	for (size_t i = 0; i < n; i++)
		if (in[i].port >= CANAL_PORTS_MAX || atomic_load_explicit(&dp->ports[in[i].port].state, memory_order_acquire) != PORT_LIVE)
			return CANAL_ERANGE;
	w->io = &io_capture;
	w->io_context = &capture;
	worker_clock(w, now_ms);
	w->tables = epoch_enter(&dp->epoch);
	for (size_t done = 0; done < n && rc == CANAL_OK;) {
		uint32_t count = run_batch(w, bytes, in + done, n - done);

		if (count == 0)
			rc = CANAL_EINVAL;
		done += count;
	}
	epoch_leave(&dp->epoch);
	counters_publish(&w->counters);
	w->io = &io_kernel;
	return rc != CANAL_OK ? rc : capture.overflow ? CANAL_ERANGE : (int)capture.n;
}
