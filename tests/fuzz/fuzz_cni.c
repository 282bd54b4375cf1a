/*
 * fuzz_cni.c - any bytes as the daemon's answer to canal-cni, and as text that canal-cni quotes.
 *
 * Invariants: what is accepted lies inside what was received (blocks of exactly its size: ASan sees the next byte), is nothing or
 *             one object, and a cut at any place is not accepted; quoted text has no quote, backslash or control character of its own.
 */
/* sources: cni/message.c */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cni/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

static bool accepted(const uint8_t *data, size_t size)
{
	char *copy = malloc(size ? size : 1);
	struct answer answer;
	bool found;

	require(copy);
	if (size)
		memcpy(copy, data, size);
	found = message_answer(copy, size, &answer);
	if (found) {
		require(answer.exit_status == 0 || answer.exit_status == 1);
		require(answer.body > copy && answer.body + answer.size == copy + size);
		require(answer.size == 0 || answer.body[0] == '{');
	}
	free(copy);
	return found;
}

static void check_quote(const uint8_t *data, size_t size)
{
	char *text = calloc(size + 1, 1);
	size_t capacity = size ? data[0] * 4u : 0, used;
	char *out = malloc(capacity ? capacity : 1);

	require(text && out);
	if (size)
		memcpy(text, data, size);
	used = message_quote(text, out, capacity);
	require(used <= capacity);
	for (size_t i = 0; i < used; i++) {
		require(out[i] >= 0x20 && out[i] < 0x7f && out[i] != '"');
		if (out[i] == '\\') {
			require(i + 1 < used && (out[i + 1] == '"' || out[i + 1] == '\\' || out[i + 1] == 'u'));
			i += out[i + 1] == 'u' ? 5 : 1;
			require(i < used);
		}
	}
	free(text);
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (accepted(data, size))
		for (size_t cut = 0; cut < size; cut++)
			require(!accepted(data, cut));
	check_quote(data, size);
	return 0;
}
