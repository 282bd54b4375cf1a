/*
 * one_by_one.c - a forwarder that moves one packet per system call: what flannel's udp backend does, to compare with.
 *
 * Place:      a program of its own; `canal lab` nodes of kind one-by-one run it, benchmarks measure against it.
 *             one-by-one TUNNAME LOCAL_IP PORT PEER_SUBNET=PEER_IP...
 * Structure:  poll ─► TUN: read, look the destination up, one less TTL, sendto
 *                  └► socket: recvfrom, one less TTL, write
 * Invariants: no offload, no batch, no checksum but the IP header's; a packet is the raw inner IPv4 packet in UDP.
 *             Unlike flannel's it never believes a header length it has not checked, and takes packets from peers only.
 * Threads:    one.
 * Limits:     IPv4; 256 peers, searched one after the other.
 * Source:     flannel 0.27 backend "udp": wire format, drain order, two TTL decrements on the way.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PEERS_MAX = 256, PACKET_MAX = 65536, SOCKET_BUFFER = 7 << 20 };

struct peer {
	uint32_t subnet_be;
	uint32_t mask_be;
	struct sockaddr_in addr;
};

struct forwarder {
	int tun;
	int sock;
	struct peer peers[PEERS_MAX];
	size_t n_peers;
	uint8_t packet[PACKET_MAX];
};

static int fail(const char *what)
{
	fprintf(stderr, "one-by-one: %s: %s\n", what, strerror(errno));
	return -1;
}

/* "10.244.2.0/24=192.168.1.2" */
static int read_peer(const char *text, uint16_t port, struct peer *peer)
{
	char subnet[INET_ADDRSTRLEN], ip[INET_ADDRSTRLEN];
	unsigned int plen;

	if (sscanf(text, "%15[0-9.]/%2u=%15[0-9.]", subnet, &plen, ip) != 3 || plen > 32)
		return -1;
	peer->mask_be = plen ? htonl(UINT32_MAX << (32 - plen)) : 0;
	peer->addr = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port) };
	if (inet_pton(AF_INET, subnet, &peer->subnet_be) != 1 || inet_pton(AF_INET, ip, &peer->addr.sin_addr) != 1)
		return -1;
	peer->subnet_be &= peer->mask_be;
	return 0;
}

static int open_tun(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	int fd;

	if (strlen(name) >= sizeof(request.ifr_name)) {
		errno = ENAMETOOLONG;
		return fail(name);
	}
	memcpy(request.ifr_name, name, strlen(name) + 1);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return fail("/dev/net/tun");
	if (ioctl(fd, TUNSETIFF, &request) < 0) {
		fail(name);
		close(fd);
		return -1;
	}
	return fd;
}

static int open_socket(const char *ip, uint16_t port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(port) };
	int size = SOCKET_BUFFER, fd;

	if (inet_pton(AF_INET, ip, &addr.sin_addr) != 1) {
		errno = EINVAL;
		return fail(ip);
	}
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail("socket");
	/* The same buffers as everybody in a comparison; without CAP_NET_ADMIN the kernel's default has to do. */
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		fail("bind");
		close(fd);
		return -1;
	}
	return fd;
}

static const struct peer *peer_of_subnet(const struct forwarder *f, uint32_t addr_be)
{
	for (size_t i = 0; i < f->n_peers; i++)
		if ((addr_be & f->peers[i].mask_be) == f->peers[i].subnet_be)
			return &f->peers[i];
	return NULL;
}

static bool is_peer(const struct forwarder *f, uint32_t addr_be)
{
	for (size_t i = 0; i < f->n_peers; i++)
		if (f->peers[i].addr.sin_addr.s_addr == addr_be)
			return true;
	return false;
}

/* One hop less, and the header checksum with it (RFC 1624). False: not IPv4, or its time is up. */
static bool hop(uint8_t *packet, size_t size)
{
	struct iphdr ip;
	uint32_t sum;

	if (size < sizeof(ip))
		return false;
	memcpy(&ip, packet, sizeof(ip));
	if (ip.version != 4 || ip.ihl < 5 || ip.ttl <= 1)
		return false;
	ip.ttl--;
	sum = (uint32_t)ip.check + htons(0x0100);
	ip.check = (uint16_t)(sum + (sum >= 0xffff));
	memcpy(packet, &ip, sizeof(ip));
	return true;
}

/* Each returns whether there was something to move. What cannot be delivered now is lost, as on any link. */
static bool tun_to_socket(struct forwarder *f)
{
	const struct peer *peer;
	uint32_t dst_be;
	ssize_t size = read(f->tun, f->packet, sizeof(f->packet));

	if (size <= 0)
		return false;
	if (!hop(f->packet, (size_t)size))
		return true;
	memcpy(&dst_be, f->packet + offsetof(struct iphdr, daddr), sizeof(dst_be));
	peer = peer_of_subnet(f, dst_be);
	if (peer && sendto(f->sock, f->packet, (size_t)size, 0, (const struct sockaddr *)&peer->addr, sizeof(peer->addr)) < 0 &&
	    errno != EAGAIN && errno != ENOBUFS && errno != ECONNREFUSED)
		fail("sendto");
	return true;
}

static bool socket_to_tun(struct forwarder *f)
{
	struct sockaddr_in from;
	socklen_t from_size = sizeof(from);
	ssize_t size = recvfrom(f->sock, f->packet, sizeof(f->packet), 0, (struct sockaddr *)&from, &from_size);

	if (size < 0)
		return false;
	if (!is_peer(f, from.sin_addr.s_addr) || !hop(f->packet, (size_t)size))
		return true;
	if (write(f->tun, f->packet, (size_t)size) < 0 && errno != EAGAIN && errno != ENOBUFS)
		fail("write");
	return true;
}

static int forward(struct forwarder *f)
{
	struct pollfd fds[2] = { { .fd = f->tun, .events = POLLIN }, { .fd = f->sock, .events = POLLIN } };

	for (;;) {
		bool tun, sock;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return fail("poll");
		do {
			tun = tun_to_socket(f);
			sock = socket_to_tun(f);
		} while (tun || sock);
		if (fds[0].revents & POLLERR) {
			errno = ENODEV;
			return fail("TUN");
		}
	}
}

static int usage(void)
{
	fprintf(stderr, "usage: one-by-one TUNNAME LOCAL_IP PORT PEER_SUBNET=PEER_IP...\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct forwarder forwarder = { 0 }, *f = &forwarder;
	char *end;
	unsigned long port;

	if (argc < 4 || argc - 4 > PEERS_MAX)
		return usage();
	port = strtoul(argv[3], &end, 10);
	if (*end || port == 0 || port > UINT16_MAX)
		return usage();
	for (int i = 4; i < argc; i++)
		if (read_peer(argv[i], (uint16_t)port, &f->peers[f->n_peers++]) < 0)
			return usage();
	f->sock = open_socket(argv[2], (uint16_t)port);
	if (f->sock < 0)
		return 1;
	f->tun = open_tun(argv[1]); /* last: the device has a carrier when everything is ready */
	if (f->tun < 0)
		return 1;
	return forward(f) < 0;
}
