/*
 * udp_blast.c - numbered UDP packets at a chosen rate, and who counts them at the other end.
 *
 * Place:      `canal bench overlay` runs both ends inside pods to find the highest rate without loss.
 *             udp-blast receive ADDR                             prints {"port": n}; counts until stdin ends; prints sums
 *             udp-blast send ADDR PORT RATE SECONDS SIZE [check] prints sums; RATE in packets/s, 0 = as fast as it goes;
 *                                                                SIZE = bytes of the IP packet, or imix (7 x 64, 4 x 576, 1 x 1400)
 * Structure:  payload, host order (both ends are one machine); with `check`, byte i of the rest is the low byte of sequence + i:
 *
 *               0        4        8                16               24
 *               | magic  | flags  | sequence       | ~sequence      | rest ...
 *
 * Invariants: one packet is one datagram: neither end uses segmentation or coalescing of UDP. What is due is sent in
 *             batches of one sendmmsg, at most TICK_NS apart, alike for every system that is measured.
 *             The receiver reads on until nothing has come for QUIET_MS after stdin ended, so late packets count.
 * Threads:    one per program.
 * Limits:     IPv4 and IPv6; packets up to 1500 bytes; duplicates count as reordered, and as received.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, PACKET_MAX = 1500, HEADER_SIZE = 24, MAGIC = 0x43414e41, CHECKED = 1, QUIET_MS = 30 };
enum { SOCKET_BUFFER = 8 << 20, TICK_NS = 50000, IMIX_PERIOD = 12 };

static const uint16_t imix_sizes[IMIX_PERIOD] = { 64, 576, 64, 64, 576, 64, 1400, 64, 576, 64, 64, 576 };

struct header {
	uint32_t magic;
	uint32_t flags;
	uint64_t sequence;
	uint64_t inverse;
};

struct sums {
	uint64_t packets, bytes, reordered, corrupt;
	uint64_t first_ns, last_ns;
	uint64_t next_sequence;
};

/* BATCH packets for one sendmmsg or recvmmsg. */
struct ring {
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	uint8_t bytes[BATCH][PACKET_MAX];
};

static int fail(const char *what)
{
	fprintf(stderr, "udp-blast: %s: %s\n", what, strerror(errno));
	return 1;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static int open_socket(const char *host, const char *port, bool listen, int *family)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_DGRAM }, *found;
	int size = SOCKET_BUFFER, fd;

	if (getaddrinfo(host, port, &hints, &found)) {
		errno = EINVAL;
		return -1;
	}
	fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		/* Large enough that the program's own pauses do not show as loss; refused without CAP_NET_ADMIN. */
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
		if ((listen ? bind : connect)(fd, found->ai_addr, found->ai_addrlen) < 0) {
			close(fd);
			fd = -1;
		}
	}
	*family = found->ai_family;
	freeaddrinfo(found);
	return fd;
}

static void ring_init(struct ring *ring, size_t size)
{
	memset(ring, 0, sizeof(*ring));
	for (size_t i = 0; i < BATCH; i++) {
		ring->vectors[i] = (struct iovec){ ring->bytes[i], size };
		ring->messages[i].msg_hdr = (struct msghdr){ .msg_iov = &ring->vectors[i], .msg_iovlen = 1 };
	}
}

/* ---- receive -------------------------------------------------------------------------------------------------------- */

static bool intact(const uint8_t *payload, size_t size, const struct header *header)
{
	if (header->magic != MAGIC || header->inverse != ~header->sequence)
		return false;
	if (header->flags & CHECKED)
		for (size_t i = HEADER_SIZE; i < size; i++)
			if (payload[i] != (uint8_t)(header->sequence + i))
				return false;
	return true;
}

static void count(struct sums *sums, const uint8_t *payload, size_t size)
{
	struct header header;

	if (size < HEADER_SIZE) {
		sums->corrupt++;
		return;
	}
	memcpy(&header, payload, sizeof(header));
	if (!intact(payload, size, &header)) {
		sums->corrupt++;
		return;
	}
	sums->packets++;
	sums->bytes += size;
	if (header.sequence < sums->next_sequence)
		sums->reordered++;
	else
		sums->next_sequence = header.sequence + 1;
}

static bool input_ended(void)
{
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	char byte;

	return poll(&input, 1, 0) > 0 && read(STDIN_FILENO, &byte, 1) <= 0;
}

static int print_port(int fd)
{
	struct sockaddr_storage own;
	socklen_t size = sizeof(own);

	if (getsockname(fd, (struct sockaddr *)&own, &size) < 0)
		return fail("getsockname");
	/* sin_port and sin6_port lie in the same place. */
	printf("{\"port\": %u}\n", ntohs(((struct sockaddr_in *)&own)->sin_port));
	return fflush(stdout);
}

static int receive(const char *host)
{
	static struct ring ring;
	struct timeval quiet = { .tv_usec = QUIET_MS * 1000 };
	struct sums sums = { 0 };
	int family, fd = open_socket(host, "0", true, &family);

	if (fd < 0)
		return fail(host);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof(quiet)) < 0)
		return fail("SO_RCVTIMEO");
	if (print_port(fd))
		return 1;
	ring_init(&ring, PACKET_MAX);
	for (;;) {
		int n = recvmmsg(fd, ring.messages, BATCH, MSG_WAITFORONE, NULL);

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return fail("recvmmsg");
		if (n < 0 && input_ended())
			break;
		if (n <= 0)
			continue;
		sums.last_ns = now_ns();
		if (!sums.first_ns)
			sums.first_ns = sums.last_ns;
		for (int i = 0; i < n; i++)
			count(&sums, ring.bytes[i], ring.messages[i].msg_len);
	}
	printf("{\"packets\": %llu, \"bytes\": %llu, \"reordered\": %llu, \"corrupt\": %llu, \"seconds\": %.6f}\n",
	       (unsigned long long)sums.packets, (unsigned long long)sums.bytes, (unsigned long long)sums.reordered,
	       (unsigned long long)sums.corrupt, (double)(sums.last_ns - sums.first_ns) / 1e9);
	return 0;
}

/* ---- send ----------------------------------------------------------------------------------------------------------- */

struct plan {
	uint64_t rate;     /* packets per second, 0 = no limit */
	uint64_t span_ns;
	uint16_t size;     /* bytes of the IP packet, 0 = imix */
	uint16_t overhead; /* IP and UDP headers               */
	bool check;
};

static void fill(struct ring *ring, const struct plan *plan, uint64_t sequence, size_t n)
{
	for (size_t i = 0; i < n; i++, sequence++) {
		struct header header = { MAGIC, plan->check ? CHECKED : 0, sequence, ~sequence };
		size_t size = (size_t)(plan->size ? plan->size : imix_sizes[sequence % IMIX_PERIOD]) - plan->overhead;

		memcpy(ring->bytes[i], &header, sizeof(header));
		if (plan->check)
			for (size_t at = HEADER_SIZE; at < size; at++)
				ring->bytes[i][at] = (uint8_t)(sequence + at);
		ring->vectors[i].iov_len = size;
	}
}

/* How many packets are due; sleeps up to one tick when none is. */
static uint64_t due(const struct plan *plan, uint64_t start_ns, uint64_t sent)
{
	uint64_t elapsed_ns = now_ns() - start_ns, wanted;
	struct timespec tick = { .tv_nsec = TICK_NS };

	if (!plan->rate)
		return BATCH;
	wanted = (uint64_t)((double)plan->rate * (double)elapsed_ns / 1e9);
	if (wanted > sent)
		return wanted - sent;
	nanosleep(&tick, NULL);
	return 0;
}

static int transmit(int fd, struct ring *ring, const struct plan *plan)
{
	uint64_t start_ns = now_ns(), sent = 0, refused = 0, end_ns = start_ns + plan->span_ns;

	while (now_ns() < end_ns) {
		uint64_t n = due(plan, start_ns, sent);
		int done;

		if (!n)
			continue;
		n = n < BATCH ? n : BATCH;
		fill(ring, plan, sent, n);
		done = sendmmsg(fd, ring->messages, (unsigned int)n, 0);
		if (done < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED)
			return fail("sendmmsg");
		/* A packet that the local stack has no room for was offered and is lost. */
		refused += done < 0;
		sent += done < 0 ? 1 : (uint64_t)done;
	}
	printf("{\"packets\": %llu, \"refused\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent,
	       (unsigned long long)refused, (double)(now_ns() - start_ns) / 1e9);
	return 0;
}

static int send_all(char **words, bool check)
{
	static struct ring ring;
	struct plan plan = { .check = check };
	int family, fd = open_socket(words[0], words[1], false, &family);

	if (fd < 0)
		return fail(words[0]);
	plan.rate = strtoull(words[2], NULL, 10);
	plan.span_ns = (uint64_t)(strtod(words[3], NULL) * 1e9);
	plan.size = strcmp(words[4], "imix") ? (uint16_t)strtoul(words[4], NULL, 10) : 0;
	plan.overhead = family == AF_INET6 ? 48 : 28;
	if (plan.size > PACKET_MAX || (plan.size && plan.size < plan.overhead + HEADER_SIZE) ||
	    (!plan.size && imix_sizes[0] < plan.overhead + HEADER_SIZE)) {
		fprintf(stderr, "udp-blast: packets have %d to %d bytes\n", plan.overhead + HEADER_SIZE, PACKET_MAX);
		return 2;
	}
	(void)prctl(PR_SET_TIMERSLACK, 1UL); /* a tick is a tick, not a tick and 50 us */
	ring_init(&ring, PACKET_MAX);
	return transmit(fd, &ring, &plan);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "receive"))
		return receive(argv[2]);
	if ((argc == 7 || (argc == 8 && !strcmp(argv[7], "check"))) && !strcmp(argv[1], "send"))
		return send_all(argv + 2, argc == 8);
	fprintf(stderr, "usage: udp-blast receive ADDR | send ADDR PORT RATE SECONDS SIZE|imix [check]\n");
	return 2;
}
