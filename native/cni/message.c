/*
 * message.c - what passes between canal-cni and the daemon, and what canal-cni says itself.
 *
 * Place:      called by canal-cni.c only; no I/O.
 * Structure:  request, to the daemon     CNI_COMMAND=ADD \0 CNI_IFNAME=eth0 \0 ... \0 \0 stdin, then the end of the stream
 *             answer, from the daemon    exit status 0 or 1, one space, size in decimal, newline, so many bytes for stdout
 * Invariants: an answer that was cut off is no answer; nothing but one JSON object can reach stdout.
 */
#include "message.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* The digits of a number in front of a newline; 0 unless there are 1 to 7 of them. */
static size_t count_digits(const char *data, size_t size)
{
	size_t n = 0;

	while (n < size && n < 8 && data[n] >= '0' && data[n] <= '9')
		n++;
	return n < size && n < 8 && data[n] == '\n' ? n : 0;
}

static bool is_object(const char *body, size_t size)
{
	if (size && body[size - 1] == '\n')
		size--;
	return size >= 2 && body[0] == '{' && body[size - 1] == '}' && !memchr(body, '\0', size);
}

bool message_answer(const char *data, size_t size, struct answer *out)
{
	size_t digits, told = 0;

	if (size < 4 || (data[0] != '0' && data[0] != '1') || data[1] != ' ')
		return false;
	digits = count_digits(data + 2, size - 2);
	if (!digits)
		return false;
	for (size_t i = 0; i < digits; i++)
		told = told * 10 + (size_t)(data[2 + i] - '0');
	out->exit_status = data[0] - '0';
	out->body = data + 2 + digits + 1;
	out->size = size - 2 - digits - 1;
	return out->size == told && (told == 0 || is_object(out->body, told));
}

size_t message_quote(const char *text, char *out, size_t capacity)
{
	char piece[8];
	size_t used = 0;

	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		int n;

		if (c == '"' || c == '\\')
			n = snprintf(piece, sizeof(piece), "\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			n = snprintf(piece, sizeof(piece), "\\u%04x", c);
		else
			n = snprintf(piece, sizeof(piece), "%c", c);
		if (n <= 0 || (size_t)n > capacity - used)
			break;
		memcpy(out + used, piece, (size_t)n);
		used += (size_t)n;
	}
	return used;
}
