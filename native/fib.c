/*
 * fib.c - longest prefix match: address -> target, for routing the destination and for checking the source.
 *
 * Place:      a part of the snapshot; built by tables.c, asked by judge.c and canal_fib_lookup().
 * Structure:  a trie of one byte a level. IPv4 starts with a table of its first two bytes, IPv6 with a node.
 *
 *     entry   |0| target (31 bits)                  |   a leaf: longest match so far, 0 = none
 *             |1|0| line number of a node           |
 *             |1|1| line number of a jump           |
 *
 *     node    | starts: 256 bits, bit v set when value v begins a run   32 bytes |
 *             | before: 4 x 8 bits, runs in the words before, less one   4 bytes |   entry of value v =
 *             | entries: one for each run of equal neighbours        4 bytes each |   entries[before[v / 64] + popcount(starts up to v)]
 *
 *     jump    | mask | bytes | at | depth | miss | next |   two to eight levels with one way on: compare, go on or miss
 *
 *             Nodes and jumps begin on 64-byte lines: a lonely /24 costs one line, a dense range of /24 four bytes each, the common
 *             prefix of an IPv6 pod network one jump. A batch goes down in lockstep, so that the lines of a group load together.
 * Invariants: immutable after fib_build(). A node's run 0 starts at value 0. A target never has bit 31, so a leaf is the target itself.
 * Threads:    any; read only.
 * Limits:     2^24 prefixes, 64 GiB of lines. 256 KiB for the IPv4 table.
 * Source:     Degermark et al. 1997 (bitmaps of runs), Asai and Ohara 2015 (Poptrie: direct pointing, popcount in place of pointers).
 *             Sapphire Rapids, one shared core, M lookups/s of random addresses, 5,000 /24 | 100,000 of /8 to /32, best of several:
 *                 this                        350 | 100; 277 KiB | 5.4 MiB
 *                 without the two-byte table  170 |  35;  21 KiB | 5.4 MiB
 *                 no lockstep                 530 |  70, and 145 instead of 180 where hits and misses mix
 */
#include "fib.h"

#include <stdlib.h>
#include <string.h>

enum { LINE_WORDS = 16, LINE_BYTES = 64 };
enum { NODE_HEADER_WORDS = 9, JUMP_MIN = 2, JUMP_MAX = 8, GROUP = 16 };
enum { V4_DEPTH = 12, ADDR_BYTES = 16, N_MAX = 1 << 24 };
enum { DIRECT_BYTES = 2, DIRECT_SIZE = 1 << 16 };
#define CHILD 0x80000000u
#define JUMP 0x40000000u
#define LINE 0x3fffffffu

struct node {
	uint64_t starts[4];
	uint8_t before[4];
	uint32_t entries[];
};

struct jump {
	uint64_t mask, bytes;    /* of the 8 bytes at `at` */
	uint32_t at;             /* 0..8: never beyond the address */
	uint32_t depth;          /* of next */
	uint32_t miss;
	uint32_t next;
};

struct fib {
	uint32_t root6;
	uint8_t *lines;
	uint32_t direct4[DIRECT_SIZE];
};

/* A clone with the popcnt instruction, chosen at load time; the baseline of x86-64 has none. (TSan is not up yet when it is chosen.) */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("popcnt", "default")))
#else
#define CLONES
#endif

/* ---- lookup -------------------------------------------------------------------------------------------------------------- */

static inline const void *line_of(const struct fib *fib, uint32_t entry)
{
	return fib->lines + (size_t)(entry & LINE) * LINE_BYTES;
}

/* One level down from a child. */
static inline uint32_t step(const struct fib *fib, uint32_t entry, const uint8_t *addr, uint32_t *depth)
{
	if (likely(!(entry & JUMP))) {
		const struct node *node = line_of(fib, entry);
		uint32_t value = addr[(*depth)++], word = value >> 6;
		uint64_t up_to = node->starts[word] << (63 - (value & 63));

		return node->entries[(uint8_t)(node->before[word] + __builtin_popcountll(up_to))];
	}
	const struct jump *jump = line_of(fib, entry);
	uint64_t bytes;

	memcpy(&bytes, addr + jump->at, sizeof(bytes));
	*depth = jump->depth;
	return (bytes & jump->mask) == jump->bytes ? jump->next : jump->miss;
}

static inline uint32_t root_of(const struct fib *fib, const uint8_t *addr, uint8_t family, uint32_t *depth)
{
	*depth = family == 4 ? V4_DEPTH + DIRECT_BYTES : 0;
	return family == 4 ? fib->direct4[load_be16(addr + V4_DEPTH)] : fib->root6;
}

CLONES uint32_t fib_lookup(const struct fib *fib, const uint8_t addr[16], uint8_t family)
{
	uint32_t depth, entry = root_of(fib, addr, family, &depth);

	while (entry & CHILD)
		entry = step(fib, entry, addr, &depth);
	return entry;
}

/* A group in lockstep: each round takes every unfinished address one level down and asks for the line that it reads next. */
CLONES void fib_lookup_batch(const struct fib *fib, const uint8_t *addrs, const uint8_t *families, size_t n, uint32_t *targets)
{
	for (size_t first = 0; first < n; first += GROUP) {
		size_t count = n - first < GROUP ? n - first : GROUP;
		uint32_t depth[GROUP], below = 0;
		const uint8_t *addr = addrs + first * ADDR_BYTES;
		uint32_t *entry = targets + first;

		for (size_t i = 0; i < count; i++) {
			entry[i] = root_of(fib, addr + i * ADDR_BYTES, families[first + i], &depth[i]);
			__builtin_prefetch(line_of(fib, entry[i]));
			below |= entry[i];
		}
		while (below & CHILD) {
			below = 0;
			for (size_t i = 0; i < count; i++) {
				if (!(entry[i] & CHILD))
					continue;
				entry[i] = step(fib, entry[i], addr + i * ADDR_BYTES, &depth[i]);
				__builtin_prefetch(line_of(fib, entry[i]));
				below |= entry[i];
			}
		}
	}
}

/* ---- build --------------------------------------------------------------------------------------------------------------- */

struct row {
	uint8_t prefix[ADDR_BYTES];
	uint32_t target;
	uint32_t plen;           /* of 128 bits */
	uint32_t index;          /* row of the caller's table */
};

struct builder {
	uint8_t *lines;
	size_t used, room;       /* lines */
	bool failed;
};

static int fault_at(struct canal_fault *fault, int code, size_t row, size_t field)
{
	*fault = (struct canal_fault){ .code = code, .table = CANAL_TABLE_FIB, .row = (uint32_t)row, .field = (uint32_t)field };
	return code;
}

/* Reserve lines for `bytes`; returns the number of the first, 0 and `failed` when there is no memory. */
static uint32_t reserve(struct builder *b, size_t bytes)
{
	size_t lines = (bytes + LINE_BYTES - 1) / LINE_BYTES, at = b->used;

	if (b->failed)
		return 0;
	if (at + lines > b->room) {
		size_t room = (at + lines) * 2;
		uint8_t *grown = room <= LINE ? aligned_alloc(LINE_BYTES, room * LINE_BYTES) : NULL;

		if (!grown) {
			b->failed = true;
			return 0;
		}
		if (at)
			memcpy(grown, b->lines, at * LINE_BYTES);
		free(b->lines);
		b->lines = grown;
		b->room = room;
	}
	memset(b->lines + at * LINE_BYTES, 0, lines * LINE_BYTES);
	b->used += lines;
	return (uint32_t)at;
}

static uint32_t write_node(struct builder *b, const uint32_t values[256])
{
	struct node head = { .before = { 0 } };
	uint32_t entries[256], n = 0, line;

	for (uint32_t v = 0; v < 256; v++) {
		if (v % 64 == 0)
			head.before[v / 64] = (uint8_t)(n - 1);
		if (v > 0 && values[v] == values[v - 1])
			continue;
		head.starts[v / 64] |= (uint64_t)1 << (v % 64);
		entries[n++] = values[v];
	}
	line = reserve(b, sizeof(uint32_t) * (NODE_HEADER_WORDS + n));
	if (b->failed)
		return 0;
	memcpy(b->lines + (size_t)line * LINE_BYTES, &head, sizeof(uint32_t) * NODE_HEADER_WORDS);
	memcpy(b->lines + (size_t)line * LINE_BYTES + sizeof(uint32_t) * NODE_HEADER_WORDS, entries, sizeof(uint32_t) * n);
	return CHILD | line;
}

static uint32_t write_jump(struct builder *b, const uint8_t *prefix, uint32_t from, uint32_t to, uint32_t miss, uint32_t next)
{
	uint8_t mask[ADDR_BYTES] = { 0 };
	struct jump jump = { .at = from < 8 ? from : 8, .depth = to, .miss = miss, .next = next };
	uint32_t line = reserve(b, sizeof(jump));

	if (b->failed)
		return 0;
	memset(mask + from, 0xff, to - from);
	memcpy(&jump.mask, mask + jump.at, sizeof(jump.mask));
	memcpy(&jump.bytes, prefix + jump.at, sizeof(jump.bytes));
	jump.bytes &= jump.mask;
	memcpy(b->lines + (size_t)line * LINE_BYTES, &jump, sizeof(jump));
	return CHILD | JUMP | line;
}

/* The first depth from `depth` on where these rows part or one of them ends. */
static uint32_t branch_depth(const struct row *rows, size_t n, uint32_t depth)
{
	uint32_t shortest = rows[0].plen, end;

	for (size_t i = 1; i < n; i++)
		shortest = rows[i].plen < shortest ? rows[i].plen : shortest;
	end = (shortest - 1) / 8;
	end = end < depth + JUMP_MAX ? end : depth + JUMP_MAX;
	while (depth < end && rows[0].prefix[depth] == rows[n - 1].prefix[depth])
		depth++;
	return depth;
}

/* Value of the `bytes` bytes at `depth`. */
static uint32_t value_of(const struct row *row, uint32_t depth, uint32_t bytes)
{
	return bytes == 1 ? row->prefix[depth] : load_be16(row->prefix + depth);
}

static uint32_t build(struct builder *b, const struct row *rows, size_t n, uint32_t depth, uint32_t fallback);

/* values[256 ** bytes]: what each value of the bytes at `depth` leads to, for n sorted rows that are longer than 8 * depth bits and equal
 * before. A prefix is sorted before those that it contains, so painting in order leaves the longest on top. */
static void fill(struct builder *b, uint32_t *values, const struct row *rows, size_t n, uint32_t depth, uint32_t bytes, uint32_t fallback)
{
	uint32_t below = depth + bytes;

	for (uint32_t v = 0; v < 1u << (8 * bytes); v++)
		values[v] = fallback;
	for (size_t i = 0, end; i < n; i = end) {
		uint32_t value = value_of(&rows[i], depth, bytes);

		end = i + 1;
		if (rows[i].plen <= 8 * below) {
			for (uint32_t v = 0; v < 1u << (8 * below - rows[i].plen); v++)
				values[value + v] = rows[i].target;
			continue;
		}
		while (end < n && value_of(&rows[end], depth, bytes) == value)
			end++;
		values[value] = build(b, rows + i, end - i, below, values[value]);
	}
}

/* The entry for n >= 0 such rows. Recurses at most 16 deep. */
static uint32_t build(struct builder *b, const struct row *rows, size_t n, uint32_t depth, uint32_t fallback)
{
	uint32_t values[256], branch, entry;

	if (n == 0)
		return fallback;
	branch = branch_depth(rows, n, depth);
	if (branch < depth + JUMP_MIN)
		branch = depth;
	fill(b, values, rows, n, branch, 1, fallback);
	entry = write_node(b, values);
	return branch > depth ? write_jump(b, rows[0].prefix, depth, branch, fallback, entry) : entry;
}

static void build_family(struct builder *b, const struct row *rows, size_t n, bool v4, struct fib *fib)
{
	uint32_t depth = v4 ? V4_DEPTH : 0;
	bool has_default = n > 0 && rows[0].plen == 8 * depth;
	uint32_t fallback = has_default ? rows[0].target : CANAL_TARGET_NONE;

	rows += has_default;
	n -= has_default;
	if (v4)
		fill(b, fib->direct4, rows, n, V4_DEPTH, DIRECT_BYTES, fallback);
	else
		fib->root6 = build(b, rows, n, 0, fallback);
}

static int compare_rows(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	int order = memcmp(x->prefix, y->prefix, ADDR_BYTES);

	if (order == 0)
		order = (x->plen > y->plen) - (x->plen < y->plen);
	return order ? order : (x->index > y->index) - (x->index < y->index);
}

static bool host_bits_zero(const uint8_t prefix[ADDR_BYTES], uint32_t plen)
{
	uint32_t byte = plen / 8;

	if (byte < ADDR_BYTES && (prefix[byte] & 0xff >> plen % 8))
		return false;
	for (byte++; byte < ADDR_BYTES; byte++)
		if (prefix[byte])
			return false;
	return true;
}

static int read_entry(const struct canal_fib_entry *entry, size_t index, struct row *row, struct canal_fault *fault)
{
	static const uint8_t mapped[V4_DEPTH] = { [10] = 0xff, [11] = 0xff };
	bool v4 = entry->family == 4;

	if (!v4 && entry->family != 6)
		return fault_at(fault, CANAL_EINVAL, index, offsetof(struct canal_fib_entry, family));
	if (entry->plen > (v4 ? 32 : 128))
		return fault_at(fault, CANAL_EINVAL, index, offsetof(struct canal_fib_entry, plen));
	*row = (struct row){ .target = entry->target, .plen = entry->plen + (v4 ? 8u * V4_DEPTH : 0), .index = (uint32_t)index };
	memcpy(row->prefix, entry->prefix, ADDR_BYTES);
	if ((v4 && memcmp(entry->prefix, mapped, sizeof(mapped)) != 0) || !host_bits_zero(row->prefix, row->plen))
		return fault_at(fault, CANAL_EINVAL, index, offsetof(struct canal_fib_entry, prefix));
	if (entry->target & CHILD)
		return fault_at(fault, CANAL_EINVAL, index, offsetof(struct canal_fib_entry, target));
	return CANAL_OK;
}

/* Sort the rows of one family into rows[]; two of the same prefix are a fault of the later one. */
static int sort_family(const struct canal_fib_entry *entries, size_t n, uint8_t family, struct row *rows, size_t *n_rows, struct canal_fault *fault)
{
	*n_rows = 0;
	for (size_t i = 0; i < n; i++) {
		int rc = read_entry(&entries[i], i, &rows[*n_rows], fault);

		if (rc)
			return rc;
		*n_rows += entries[i].family == family;
	}
	qsort(rows, *n_rows, sizeof(*rows), compare_rows);
	for (size_t i = 1; i < *n_rows; i++)
		if (rows[i].plen == rows[i - 1].plen && memcmp(rows[i].prefix, rows[i - 1].prefix, ADDR_BYTES) == 0)
			return fault_at(fault, CANAL_EDUP, rows[i].index, offsetof(struct canal_fib_entry, prefix));
	return CANAL_OK;
}

/* A copy without what doubling took too much. */
static uint8_t *trimmed(const struct builder *b)
{
	uint8_t *exact = aligned_alloc(LINE_BYTES, (b->used + 1) * LINE_BYTES);

	if (exact && b->used)
		memcpy(exact, b->lines, b->used * LINE_BYTES);
	return exact;
}

static int build_both(const struct canal_fib_entry *entries, size_t n, struct row *rows, struct builder *b, struct fib *fib, struct canal_fault *fault)
{
	for (uint8_t family = 4; family <= 6; family += 2) {
		size_t n_rows;
		int rc = sort_family(entries, n, family, rows, &n_rows, fault);

		if (rc)
			return rc;
		build_family(b, rows, n_rows, family == 4, fib);
	}
	fib->lines = b->failed ? NULL : trimmed(b);
	return fib->lines ? CANAL_OK : fault_at(fault, CANAL_ENOMEM, 0, 0);
}

int fib_build(const struct canal_fib_entry *entries, size_t n, struct fib **out, struct canal_fault *fault)
{
	struct builder b = { 0 };
	struct row *rows;
	int rc;

	*out = NULL;
	if (n > N_MAX)
		return fault_at(fault, CANAL_ERANGE, N_MAX, 0);
	rows = malloc((n + 1) * sizeof(*rows));
	*out = calloc(1, sizeof(**out));
	rc = rows && *out ? build_both(entries, n, rows, &b, *out, fault) : fault_at(fault, CANAL_ENOMEM, 0, 0);
	if (rc) {
		fib_free(*out);
		*out = NULL;
	}
	free(b.lines);
	free(rows);
	return rc;
}

void fib_free(struct fib *fib)
{
	if (!fib)
		return;
	free(fib->lines);
	free(fib);
}
