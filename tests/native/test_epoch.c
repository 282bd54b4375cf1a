/*
 * test_epoch.c - one thread publishes and reclaims, another reads in batches; the sanitizers are the judges.
 *
 * A snapshot says its generation twice, in node.vni and in every answer of its FIB: a reader that meets two generations in one batch, an
 * older one after a newer one, or freed memory, fails.
 */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "epoch.h"

struct race {
	struct epoch epoch;
	_Atomic uint32_t *withdrawn;    /* a port that control takes away: nobody reads `resource` after the grace period */
	uint32_t *resource;
	_Atomic uint32_t done;
	_Atomic uint64_t batches;
};

static struct canal_tables *snapshot(uint64_t generation)
{
	const struct canal_node node = { .vni = (uint32_t)generation };
	const struct canal_fib_entry route = { .family = 4, .prefix = { [10] = 0xff, [11] = 0xff, [12] = 10 }, .plen = 8,
	                                       .target = CANAL_TARGET_PORT | (uint32_t)generation % CANAL_PORTS_MAX };
	struct canal_tables *t;
	struct canal_fault fault;

	CHECK_EQ(canal_tables_build(&node, NULL, 0, &route, 1, generation, &t, &fault), CANAL_OK);
	return t;
}

static void one_batch(struct race *r, uint64_t *seen, uint64_t *seed)
{
	static const uint8_t addr[16] = { [10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1 };
	const struct canal_tables *t = epoch_enter(&r->epoch);

	CHECK(t->generation >= *seen);
	*seen = t->generation;
	for (uint32_t i = random_below(seed, 8); i > 0; i--) {
		CHECK_EQ(t->node.vni, *seen);
		CHECK_EQ(fib_lookup(t->fib, addr, 4), CANAL_TARGET_PORT | *seen % CANAL_PORTS_MAX);
	}
	if (!atomic_load_explicit(r->withdrawn, memory_order_relaxed))
		CHECK_EQ(*r->resource, 7);
	if (random_below(seed, 4) == 0)
		epoch_leave(&r->epoch);
	atomic_fetch_add_explicit(&r->batches, 1, memory_order_relaxed);
}

static void *worker(void *argument)
{
	struct race *r = argument;
	uint64_t seen = 0, seed = 1;

	while (!atomic_load(&r->done))
		one_batch(r, &seen, &seed);
	epoch_leave(&r->epoch);
	return NULL;
}

static void test_race(uint64_t swaps)
{
	_Atomic uint32_t withdrawn = 0;
	struct race r = { .withdrawn = &withdrawn, .resource = malloc(sizeof(uint32_t)) };
	pthread_t thread;

	CHECK(r.resource != NULL);
	*r.resource = 7;
	epoch_init(&r.epoch);
	epoch_publish(&r.epoch, snapshot(1));
	CHECK_EQ(pthread_create(&thread, NULL, worker, &r), 0);
	for (uint64_t generation = 2; generation <= swaps; generation++) {
		epoch_publish(&r.epoch, snapshot(generation));
		epoch_reclaim(&r.epoch);
		if (generation == swaps / 2) {
			atomic_store(&withdrawn, 1);
			epoch_wait_quiescent(&r.epoch);
			*r.resource = 0;
			free(r.resource);
		}
	}
	while (atomic_load(&r.batches) < 1000)
		sched_yield();
	atomic_store(&r.done, 1);
	pthread_join(thread, NULL);
	CHECK_EQ(epoch_reclaim(&r.epoch), 0);
	CHECK_EQ(atomic_load(&r.epoch.published), swaps);
	epoch_destroy(&r.epoch);
}

/* The same, step by step in one thread. */
static void test_steps(void)
{
	struct epoch e;
	struct canal_tables *first, *seen;

	epoch_init(&e);
	CHECK(epoch_enter(&e) == NULL);
	CHECK_EQ(epoch_reclaim(&e), 0);
	epoch_publish(&e, first = snapshot(1));
	CHECK_EQ(e.n_retired, 0);
	CHECK(epoch_enter(&e) == first);
	epoch_publish(&e, snapshot(2));
	epoch_publish(&e, snapshot(3));
	CHECK_EQ(epoch_reclaim(&e), 2);        /* the worker still holds 1; 2 was retired after its last look, too */
	CHECK_EQ(first->generation, 1);
	CHECK_EQ(atomic_load(&e.n_retired), 2);
	seen = epoch_enter(&e);
	CHECK_EQ(seen->generation, 3);
	CHECK_EQ(epoch_reclaim(&e), 0);
	epoch_publish(&e, snapshot(4));
	CHECK_EQ(epoch_reclaim(&e), 1);
	epoch_leave(&e);                       /* a worker that sleeps delays nobody */
	CHECK_EQ(epoch_reclaim(&e), 0);
	epoch_wait_quiescent(&e);
	epoch_publish(&e, snapshot(5));        /* destroy frees what was retired, too */
	epoch_destroy(&e);
}

int main(int argc, char **argv)
{
	test_steps();
	test_race(argc > 1 ? strtoull(argv[1], NULL, 10) : 1000);
	return 0;
}
