/*
 * pingpong.c - one request, one response, again and again: how long it takes, and how the times are spread.
 *
 * Place:      `canal bench overlay` runs both ends inside pods.
 *             pingpong serve tcp|udp|connect ADDR                prints {"port": n}; serves until it is killed
 *             pingpong tcp|udp|connect ADDR PORT SECONDS [SIZE]  prints {"count", "lost", "seconds", "p50_us", ...}
 * Structure:  tcp      one connection, SIZE bytes there and back
 *             udp      the same in datagrams; one that does not come back within LOST_MS is lost and sent anew
 *             connect  connect, SIZE bytes there and back, close: the server closes first, so that no port of the client
 *                      has to wait
 * Invariants: blocking calls only: what is measured is how fast the other side of a sleeping process is woken.
 *             Every response is compared with its request; one that differs ends the program.
 *             A time is a whole round trip, or a whole connection. TCP uses cubic and no delay, on both ends.
 * Threads:    one per program.
 * Limits:     SAMPLES_MAX round trips; messages up to 64 KiB (UDP: what one datagram holds).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLES_MAX = 1 << 23, MESSAGE_MAX = 1 << 16, LOST_MS = 200 };
enum way { TCP, UDP, CONNECT, UNKNOWN };

struct client {
	enum way way;
	const char *host, *port;
	size_t size;
	int fd;
	uint64_t lost;
	uint8_t request[MESSAGE_MAX], response[MESSAGE_MAX];
};

static int fail(const char *what)
{
	fprintf(stderr, "pingpong: %s: %s\n", what, strerror(errno));
	return -1;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static enum way way_of(const char *word)
{
	return !strcmp(word, "tcp") ? TCP : !strcmp(word, "udp") ? UDP : !strcmp(word, "connect") ? CONNECT : UNKNOWN;
}

static int alike_for_all(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		return fail("TCP_NODELAY");
	if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) < 0)
		return fail("cubic");
	return 0;
}

static int open_socket(enum way way, const char *host, const char *port, bool listening)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST, .ai_socktype = way == UDP ? SOCK_DGRAM : SOCK_STREAM }, *found;
	int fd, on = 1, rc;

	if (getaddrinfo(host, port, &hints, &found)) {
		errno = EINVAL;
		return fail(host);
	}
	fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
	if (fd < 0 || (way != UDP && alike_for_all(fd) < 0))
		return fail("socket");
	if (listening)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	rc = (listening ? bind : connect)(fd, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	if (rc == 0 && listening && way != UDP)
		rc = listen(fd, SOMAXCONN);
	if (rc == 0)
		return fd;
	fail(listening ? "bind" : "connect");
	close(fd);
	return -1;
}

static bool write_all(int fd, const uint8_t *bytes, size_t size)
{
	while (size) {
		ssize_t done = write(fd, bytes, size);

		if (done <= 0)
			return false;
		bytes += done;
		size -= (size_t)done;
	}
	return true;
}

static bool read_all(int fd, uint8_t *bytes, size_t size)
{
	while (size) {
		ssize_t done = read(fd, bytes, size);

		if (done <= 0)
			return false;
		bytes += done;
		size -= (size_t)done;
	}
	return true;
}

/* ---- server ----------------------------------------------------------------------------------------------------------- */

static int echo_datagrams(int fd, uint8_t *message)
{
	struct sockaddr_storage from;

	for (;;) {
		socklen_t from_size = sizeof(from);
		ssize_t size = recvfrom(fd, message, MESSAGE_MAX, 0, (struct sockaddr *)&from, &from_size);

		if (size >= 0)
			(void)sendto(fd, message, (size_t)size, 0, (struct sockaddr *)&from, from_size);
		else if (errno != EINTR && errno != ECONNREFUSED)
			return fail("recvfrom");
	}
}

/* `once`: one message per connection, then close; the client knows that there will be no more. */
static int echo_connections(int listener, bool once, uint8_t *message)
{
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		ssize_t size;

		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0)
			return fail("accept");
		if (alike_for_all(fd) < 0)
			return -1;
		do
			size = read(fd, message, MESSAGE_MAX);
		while (size > 0 && write_all(fd, message, (size_t)size) && !once);
		close(fd);
	}
}

static int serve(enum way way, const char *host)
{
	static uint8_t message[MESSAGE_MAX];
	struct sockaddr_storage own;
	socklen_t size = sizeof(own);
	int fd = open_socket(way, host, "0", true);

	if (fd < 0)
		return -1;
	if (getsockname(fd, (struct sockaddr *)&own, &size) < 0)
		return fail("getsockname");
	/* sin_port and sin6_port lie in the same place. */
	printf("{\"port\": %u}\n", ntohs(((struct sockaddr_in *)&own)->sin_port));
	fflush(stdout);
	return way == UDP ? echo_datagrams(fd, message) : echo_connections(fd, way == CONNECT, message);
}

/* ---- client ----------------------------------------------------------------------------------------------------------- */

static int exchange_stream(struct client *c)
{
	if (!write_all(c->fd, c->request, c->size) || !read_all(c->fd, c->response, c->size))
		return fail("the connection broke");
	return 0;
}

/* Late answers to requests that were given up carry an old number and are read over. */
static int exchange_datagram(struct client *c)
{
	for (;;) {
		ssize_t size;

		if (send(c->fd, c->request, c->size, 0) < 0)
			return fail("send");
		do
			size = recv(c->fd, c->response, MESSAGE_MAX, 0);
		while (size > 0 && memcmp(c->response, c->request, sizeof(uint32_t)));
		if (size >= 0)
			return 0;
		if (errno != EAGAIN)
			return fail("recv");
		c->lost++;
	}
}

static int exchange_connection(struct client *c)
{
	int rc;
	uint8_t byte;

	c->fd = open_socket(TCP, c->host, c->port, false);
	if (c->fd < 0)
		return -1;
	rc = exchange_stream(c);
	if (rc == 0 && read(c->fd, &byte, 1) != 0) {
		fprintf(stderr, "pingpong: bytes after the response\n");
		rc = -1;
	}
	close(c->fd);
	return rc;
}

static int exchange(struct client *c)
{
	return c->way == TCP ? exchange_stream(c) : c->way == UDP ? exchange_datagram(c) : exchange_connection(c);
}

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double percentile_us(const uint32_t *sorted, size_t n, double p)
{
	return (double)sorted[(size_t)(p * (double)(n - 1))] / 1e3;
}

static void print_times(uint32_t *times, size_t n, uint64_t lost, double seconds)
{
	qsort(times, n, sizeof(*times), ascending);
	printf("{\"count\": %zu, \"lost\": %llu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, "
	       "\"p999_us\": %.2f, \"max_us\": %.2f}\n",
	       n, (unsigned long long)lost, seconds, percentile_us(times, n, 0.5), percentile_us(times, n, 0.9),
	       percentile_us(times, n, 0.99), percentile_us(times, n, 0.999), percentile_us(times, n, 1.0));
}

static void print_difference(const struct client *c, uint32_t number)
{
	size_t at = 0;

	while (c->request[at] == c->response[at])
		at++;
	fprintf(stderr, "pingpong: response %u differs from its request at byte %zu of %zu:", number, at, c->size);
	for (size_t i = at; i < c->size && i < at + 16; i++)
		fprintf(stderr, " %02x", c->response[i]);
	fprintf(stderr, " for");
	for (size_t i = at; i < c->size && i < at + 16; i++)
		fprintf(stderr, " %02x", c->request[i]);
	fprintf(stderr, "\n");
}

static int measure(struct client *c, double seconds, uint32_t *times)
{
	uint64_t start_ns = now_ns(), end_ns = start_ns + (uint64_t)(seconds * 1e9), before_ns = start_ns;
	uint32_t number = 0;

	while (before_ns < end_ns && number < SAMPLES_MAX) {
		uint64_t after_ns;

		memcpy(c->request, &number, c->size < sizeof(number) ? c->size : sizeof(number));
		if (exchange(c) < 0)
			return -1;
		after_ns = now_ns();
		if (memcmp(c->request, c->response, c->size)) {
			print_difference(c, number);
			return -1;
		}
		times[number++] = (uint32_t)(after_ns - before_ns < UINT32_MAX ? after_ns - before_ns : UINT32_MAX);
		before_ns = after_ns;
	}
	print_times(times, number, c->lost, (double)(before_ns - start_ns) / 1e9);
	return 0;
}

static int run_client(struct client *c, double seconds)
{
	struct timeval lost = { .tv_usec = LOST_MS * 1000 };
	uint32_t *times = malloc(SAMPLES_MAX * sizeof(*times));
	int rc;

	if (!times)
		return fail("malloc");
	for (size_t i = 0; i < c->size; i++)
		c->request[i] = (uint8_t)(i * 131 + 7);
	if (c->way != CONNECT) {
		c->fd = open_socket(c->way, c->host, c->port, false);
		if (c->fd < 0)
			return -1;
	}
	if (c->way == UDP && setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &lost, sizeof(lost)) < 0)
		return fail("SO_RCVTIMEO");
	rc = measure(c, seconds, times);
	free(times);
	return rc;
}

int main(int argc, char **argv)
{
	static struct client client;

	if (argc == 4 && !strcmp(argv[1], "serve") && way_of(argv[2]) != UNKNOWN)
		return serve(way_of(argv[2]), argv[3]) < 0;
	if ((argc == 5 || argc == 6) && way_of(argv[1]) != UNKNOWN) {
		client.way = way_of(argv[1]);
		client.host = argv[2];
		client.port = argv[3];
		client.size = argc == 6 ? strtoul(argv[5], NULL, 10) : 16;
		if (client.size >= sizeof(uint32_t) && client.size <= MESSAGE_MAX)
			return run_client(&client, strtod(argv[4], NULL)) < 0;
	}
	fprintf(stderr, "usage: pingpong serve tcp|udp|connect ADDR | tcp|udp|connect ADDR PORT SECONDS [SIZE (4 to 65536)]\n");
	return 2;
}
