/* message.h - what passes between canal-cni and the daemon, and what canal-cni says itself. */
#ifndef CANAL_CNI_MESSAGE_H
#define CANAL_CNI_MESSAGE_H
#include <stdbool.h>
#include <stddef.h>

enum { MESSAGE_MAX_BYTES = 4 << 20 };                          /* of a request or an answer */

struct answer {
	int exit_status;
	const char *body;                                      /* for stdout; lies in what was given to message_answer */
	size_t size;
};

/* Understand what the daemon sent; false unless it is a whole answer and its body is nothing or looks like one JSON object. */
bool message_answer(const char *data, size_t size, struct answer *out);

/* Write `text` as the inside of a JSON string, never more than `capacity` bytes; returns how many. */
size_t message_quote(const char *text, char *out, size_t capacity);

#endif
