/*
 * canal-cni.c - the CNI plug-in: hands environment and stdin to the daemon, and its answer to stdout.
 *
 * Place:      run by container runtimes, several times per pod; everything is decided by canal_udp/cni behind <run-dir>/cni.sock.
 * Structure:  request (message.c) ─► cni.sock ─► answer ─► stdout, exit status
 *                                   └─ no answer: what `commands` says. A DEL is put into <run-dir>/cni-spool and is done when the
 *                                      daemon is back; the daemon listens before it reads the spool, and a DEL that was put there
 *                                      while it did is offered once more, so none is forgotten.
 * Invariants: stdout has one JSON object or nothing; everything for people goes to stderr. VERSION needs no daemon.
 * Limits:     MESSAGE_MAX_BYTES of stdin; ANSWER_S for the daemon. CANAL_RUN_DIR moves the run directory, as for `canal`.
 * Source:     CNI specification 1.1.0; the texts of containernetworking/cni pkg/skel where runtimes see them.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "message.h"

#ifndef CANAL_VERSION
#define CANAL_VERSION "of a build without a version"
#endif

enum { ERR_ENVIRONMENT = 4, ERR_IO = 5, ERR_TRY_AGAIN = 11, ERR_NOT_AVAILABLE = 50 };
enum { ANSWER_S = 100, PATH_SIZE = 256 };                      /* runtimes give up after two to four minutes */

static const char versions[] = "\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"";

static const struct command {
	const char *name;
	int away;                                              /* error code while no daemon answers; 0: spool it, and say that it is done */
} commands[] = {
	{ "ADD", ERR_TRY_AGAIN }, { "DEL", 0 }, { "CHECK", ERR_TRY_AGAIN }, { "GC", ERR_TRY_AGAIN }, { "STATUS", ERR_NOT_AVAILABLE },
};

struct request {
	char *data;
	size_t size;
};

extern char **environ;

/* ---- what is said ------------------------------------------------------------------------------------------------ */

static bool write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		size -= (size_t)n;
	}
	return true;
}

static const char *value_of(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

/* Print an error as the specification has it; returns the exit status. */
__attribute__((format(printf, 2, 3))) static int refuse(int code, const char *format, ...)
{
	char text[1024], quoted[4096], line[4352];
	va_list arguments;
	int size;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	size = (int)message_quote(text, quoted, sizeof(quoted));
	size = snprintf(line, sizeof(line), "{\"cniVersion\":\"1.1.0\",\"code\":%d,\"msg\":\"%.*s\"}\n", code, size, quoted);
	write_all(STDOUT_FILENO, line, (size_t)size);
	return 1;
}

static int print_version(void)
{
	char line[256];
	int size = snprintf(line, sizeof(line), "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[%s]}\n", versions);

	return write_all(STDOUT_FILENO, line, (size_t)size) ? 0 : 1;
}

/* For a person who runs it without knowing what it is. */
static int print_about(void)
{
	fprintf(stderr, "CNI canal-udp plugin v%s\nCNI protocol versions supported: ", CANAL_VERSION);
	for (const char *c = versions; *c; c++)
		if (*c != '"')
			fputs(*c == ',' ? ", " : (char[]){ *c, '\0' }, stderr);
	fputs("\n", stderr);
	return 0;
}

/* ---- the request ------------------------------------------------------------------------------------------------- */

static bool request_add(struct request *r, const char *data, size_t size)
{
	if (size > MESSAGE_MAX_BYTES - r->size)
		return false;
	memcpy(r->data + r->size, data, size);
	r->size += size;
	return true;
}

static bool request_add_environment(struct request *r)
{
	for (char **variable = environ; *variable; variable++)
		if (strncmp(*variable, "CNI_", 4) == 0 && !request_add(r, *variable, strlen(*variable) + 1))
			return false;
	return request_add(r, "", 1);
}

/* Append stdin up to its end; 0, or an errno (EFBIG: there is more than is taken). */
static int request_add_stdin(struct request *r)
{
	for (;;) {
		size_t space = MESSAGE_MAX_BYTES - r->size;
		char more;
		ssize_t n = space ? read(STDIN_FILENO, r->data + r->size, space) : read(STDIN_FILENO, &more, 1);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (n == 0)
			return 0;
		if (!space)
			return EFBIG;
		r->size += (size_t)n;
	}
}

/* ---- the daemon -------------------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait until something can be done; false with errno when the deadline comes first. */
static bool wait_for(int fd, short events, int64_t deadline_ms)
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		int64_t left = deadline_ms - now_ms();
		int n = poll(&p, 1, left > 0 ? (int)left : 0);

		if (n > 0)
			return true;
		if (n == 0) {
			errno = ETIMEDOUT;
			return false;
		}
		if (errno != EINTR)
			return false;
	}
}

static int daemon_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = ANSWER_S };      /* connect waits while too many others do */
	size_t size = strlen(path);
	int fd;

	if (size >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(address.sun_path, path, size);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool daemon_send(int fd, const struct request *r, int64_t deadline_ms)
{
	size_t sent = 0;

	while (sent < r->size) {
		ssize_t n;

		if (!wait_for(fd, POLLOUT, deadline_ms))
			return false;
		n = send(fd, r->data + sent, r->size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0)
			sent += (size_t)n;
		else if (errno != EINTR && errno != EAGAIN)
			return false;
	}
	return shutdown(fd, SHUT_WR) == 0;
}

/* Read up to the end of the stream, at most MESSAGE_MAX_BYTES; -1 with errno. */
static ssize_t daemon_receive(int fd, char *data, int64_t deadline_ms)
{
	size_t size = 0;

	while (size < MESSAGE_MAX_BYTES) {
		ssize_t n;

		if (!wait_for(fd, POLLIN, deadline_ms))
			return -1;
		n = recv(fd, data + size, MESSAGE_MAX_BYTES - size, MSG_DONTWAIT);
		if (n == 0)
			break;
		if (n > 0)
			size += (size_t)n;
		else if (errno != EINTR && errno != EAGAIN)
			return -1;
	}
	return (ssize_t)size;
}

/* Have the daemon do it and print its answer; -1 with errno when there is none, else the exit status. */
static int daemon_ask(const char *path, const struct request *r, char *space)
{
	int64_t deadline_ms = now_ms() + ANSWER_S * 1000;
	int fd = daemon_connect(path);
	struct answer answer;
	ssize_t size = -1;

	if (fd < 0)
		return -1;
	if (daemon_send(fd, r, deadline_ms))
		size = daemon_receive(fd, space, deadline_ms);
	if (size >= 0 && !message_answer(space, (size_t)size, &answer)) {
		errno = size ? EBADMSG : ECONNRESET;
		size = -1;
	}
	close(fd);
	if (size < 0)
		return -1;
	return write_all(STDOUT_FILENO, answer.body, answer.size) ? answer.exit_status : 1;
}

/* ---- without the daemon ------------------------------------------------------------------------------------------ */

static bool write_file(int directory, const char *name, const struct request *r)
{
	int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	bool done = fd >= 0 && write_all(fd, r->data, r->size);

	if (fd >= 0 && close(fd) < 0)
		done = false;
	if (fd >= 0 && !done)
		unlinkat(directory, name, 0);
	return done;
}

/* Leave the request for the daemon's return, under a name that nobody had before; the name, or false with errno. */
static bool spool(int directory, const struct request *r, char name[64])
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(name, 64, ".%010lld.%09ld-%d", (long long)now.tv_sec, now.tv_nsec, (int)getpid());
	return write_file(directory, name, r) && renameat(directory, name, directory, name + 1) == 0;
}

static int open_spool(const char *run_dir)
{
	char path[PATH_SIZE];

	snprintf(path, sizeof(path), "%s/cni-spool", run_dir);
	mkdir(run_dir, 0755);
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return -1;
	return open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* A DEL is a promise: whatever the daemon still has of the container will go. */
static int delete_later(const char *run_dir, const char *socket_path, const struct request *r, char *space)
{
	bool no_id = !*value_of("CNI_CONTAINERID"), no_ifname = !*value_of("CNI_IFNAME");
	int directory, status;
	char name[64];

	if (no_id || no_ifname)
		return refuse(ERR_ENVIRONMENT, "required env variables [%s%s%s] missing", no_id ? "CNI_CONTAINERID" : "",
			      no_id && no_ifname ? "," : "", no_ifname ? "CNI_IFNAME" : "");
	directory = open_spool(run_dir);
	if (directory < 0 || !spool(directory, r, name))
		return refuse(ERR_TRY_AGAIN, "daemon not reachable at %s, and %s/cni-spool: %s", socket_path, run_dir, strerror(errno));
	status = daemon_ask(socket_path, r, space);
	if (status < 0) {
		fprintf(stderr, "canal-cni: daemon not reachable at %s; it will do this DEL when it is back\n", socket_path);
		return 0;
	}
	unlinkat(directory, name + 1, 0);
	return status;
}

static int run(const struct command *command, struct request *r)
{
	const char *run_dir = *value_of("CANAL_RUN_DIR") ? value_of("CANAL_RUN_DIR") : "/run/canal";
	char path[PATH_SIZE], *space;
	int status;

	if (snprintf(path, sizeof(path), "%s/cni.sock", run_dir) >= PATH_SIZE)
		return refuse(ERR_ENVIRONMENT, "CANAL_RUN_DIR is too long");
	space = malloc(MESSAGE_MAX_BYTES);
	if (!space)
		return refuse(ERR_IO, "no memory");
	status = daemon_ask(path, r, space);
	if (status < 0 && !command)
		status = refuse(ERR_ENVIRONMENT, "unknown CNI_COMMAND: %s", value_of("CNI_COMMAND"));
	else if (status < 0 && !command->away)
		status = delete_later(run_dir, path, r, space);
	else if (status < 0)
		status = refuse(command->away, "daemon not reachable at %s: %s; is `canal daemon` running?", path, strerror(errno));
	free(space);
	return status;
}

int main(void)
{
	const char *name = value_of("CNI_COMMAND");
	const struct command *command = NULL;
	struct request r = { .data = malloc(MESSAGE_MAX_BYTES) };
	int problem, status;

	signal(SIGPIPE, SIG_IGN);
	if (!*name)
		return print_about();
	if (strcmp(name, "VERSION") == 0)
		return print_version();
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(name, commands[i].name) == 0)
			command = &commands[i];
	if (!r.data)
		return refuse(ERR_IO, "no memory");
	problem = request_add_environment(&r) ? request_add_stdin(&r) : EFBIG;
	status = problem ? refuse(ERR_IO, "error reading from stdin: %s", strerror(problem)) : run(command, &r);
	free(r.data);
	return status;
}
