"""Who writes which endpoint into the store, and who may remove it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from canal_udp.control.lease import Lease
from canal_udp.control.objects import PodEntry
from canal_udp.control.publication import GRACE_S, Drop, Publication, Put
from canal_udp.control.store import BadEntry, Batch, Entry, Gone, LeaseSnapshot, Snapshot

HERE, THERE = "10.1.1.0/24", "10.1.2.0/24"


def lease(subnet: str, node: str, public: str = "192.0.2.1") -> Lease:
    return Lease(ip_network(subnet), None, ip_address(public), node=node)  # type: ignore[arg-type]


OWN, OTHER = lease(HERE, "n1"), lease(THERE, "n2", "192.0.2.2")


def pod(name: str, *ips: str, node: str = "n1") -> PodEntry:
    namespace, _, bare = name.partition("/")
    return PodEntry(node, namespace, bare, tuple(map(ip_address, ips)), {})


A, B = pod("x/a", "10.1.1.2"), pod("x/b", "10.1.2.2", node="n2")


class Bench:
    """Node n1, what it knows, and a store that does what it is told."""

    def __init__(self, *leases: Lease, own: Lease | None = OWN, bad: tuple[BadEntry, ...] = ()) -> None:
        self.publication, self.store, self.revision = Publication("n1"), dict[str, Entry](), 0
        self.publication.know(own, LeaseSnapshot(1, leases or (OWN, OTHER), bad))

    def put(self, key: str, value: bytes) -> None:
        self.revision += 1
        self.store[key] = Entry(key, value, self.revision, self.revision)
        self.publication.see(Batch(self.revision, (self.store[key],)))

    def step(self, now: float = 0.0) -> list[str]:
        """What is done, as words; it happens."""
        done = []
        for action in self.publication.step(now):
            there = self.store.get(action.key)
            assert action.expect == (there.revision if there else 0)
            match action:
                case Put(key, value):
                    self.put(key, value)
                    done.append(f"put {key}")
                case Drop(key):
                    del self.store[key]
                    self.publication.see(Batch(self.revision, (Gone(key, self.revision),)))
                    done.append(f"drop {key}")
        return done


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_attached_is_written_once_and_what_is_detached_is_removed(bench: Bench) -> None:
    bench.publication.want([A])
    assert bench.step() == ["put n1/x/a"]
    assert bench.step() == []
    bench.publication.want([replace(A, labels={"app": "web"})])
    assert bench.step() == ["put n1/x/a"]
    bench.publication.want([])
    assert bench.step() == ["drop n1/x/a"]
    assert (bench.step(), bench.publication.next_at) == ([], None)


def test_what_someone_removed_or_changed_is_written_again(bench: Bench) -> None:
    bench.publication.want([A])
    bench.step()
    bench.put("n1/x/a", b"spoilt")
    assert bench.step() == ["put n1/x/a"]
    del bench.store["n1/x/a"]
    bench.publication.see(Snapshot(9, ()))
    assert bench.step() == ["put n1/x/a"]


def test_what_an_earlier_daemon_left_is_removed_at_once(bench: Bench) -> None:
    bench.put("n1/x/old", pod("x/old", "10.1.1.9").value)
    bench.put("n1/x/spoilt", b"{")
    bench.put(B.key, B.value)
    assert bench.step() == ["drop n1/x/old", "drop n1/x/spoilt"]


def test_who_had_our_subnet_before_has_no_pods_in_it(bench: Bench) -> None:
    bench.put("n9/x/old", pod("x/old", "10.1.1.9", node="n9").value)
    assert bench.step() == ["drop n9/x/old"]


@pytest.mark.parametrize(
    ("entry", "leases", "bad"),
    [
        pytest.param(B, (OWN, OTHER), (), id="its node leases it"),
        pytest.param(pod("x/b", node="n2"), (OWN, OTHER), (), id="no address, and its node is there"),
        pytest.param(B, (OWN,), (BadEntry("10.1.2.0-24", "?", 1),), id="the lease cannot be read"),
    ],
)
def test_a_pod_of_a_node_that_is_there_is_left_alone(
    entry: PodEntry, leases: tuple[Lease, ...], bad: tuple[BadEntry, ...]
) -> None:
    bench = Bench(*leases, bad=bad)
    bench.put(entry.key, entry.value)
    assert (bench.step(), bench.step(10 * GRACE_S), bench.publication.next_at) == ([], [], None)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(B, id="nobody leases it"),
        pytest.param(pod("x/b", node="n2"), id="no address, and no node of its name"),
        pytest.param(pod("x/b", "10.1.1.7", "10.1.9.9", node="n2"), id="one address is ours, one is nobody's"),
    ],
)
def test_a_pod_of_a_node_that_is_gone_is_removed_after_a_while(entry: PodEntry) -> None:
    bench = Bench(OWN)
    bench.put(entry.key, entry.value)
    assert bench.step(100) == []
    assert bench.publication.next_at == 100 + GRACE_S
    assert bench.step(99 + GRACE_S) == []
    assert bench.step(100 + GRACE_S) == ["drop n2/x/b"]
    assert bench.publication.next_at is None


def test_an_orphan_whose_node_comes_back_or_that_is_written_again_starts_anew() -> None:
    bench = Bench(OWN)
    bench.put(B.key, B.value)
    bench.step(0)
    bench.publication.know(OWN, LeaseSnapshot(2, (OWN, OTHER)))
    assert (bench.step(GRACE_S), bench.publication.next_at) == ([], None)
    bench.publication.know(OWN, LeaseSnapshot(3, (OWN,)))
    assert bench.step(GRACE_S) == []
    bench.put(B.key, B.value)
    assert bench.step(2 * GRACE_S) == []
    assert bench.step(3 * GRACE_S) == ["drop n2/x/b"]


def test_nothing_is_written_or_removed_before_the_leases_are_known() -> None:
    publication = Publication("n1")
    publication.know(None, None)
    publication.want([A])
    publication.see(Snapshot(1, (Entry(B.key, B.value, 1, 1),)))
    assert publication.step(10 * GRACE_S) == ()
    publication.know(OWN, LeaseSnapshot(1, (OWN, OTHER)))
    assert publication.step(10 * GRACE_S) == (Put(A.key, A.value, 0),)


def test_a_lease_that_another_node_took_is_ours_no_more() -> None:
    bench = Bench(lease(HERE, "n3", "192.0.2.3"), OTHER)
    bench.publication.want([A])
    bench.put("n3/x/c", pod("x/c", "10.1.1.5", node="n3").value)
    assert bench.step() == []


def test_a_pod_outside_of_our_subnet_is_not_written_and_what_we_wrote_of_it_goes_in_time(bench: Bench) -> None:
    bench.publication.want([A])
    bench.step()
    new = lease("10.1.7.0/24", "n1")
    bench.publication.know(new, LeaseSnapshot(2, (new, OTHER)))
    assert bench.step(0) == []
    assert bench.step(GRACE_S) == ["drop n1/x/a"]
    assert bench.step(GRACE_S) == []


def test_two_nodes_of_one_name_leave_each_others_pods_alone_and_say_so() -> None:
    twin = lease(THERE, "n1", "192.0.2.2")
    bench = Bench(OWN, twin)
    theirs = [pod("x/a", "10.1.2.2"), pod("x/t", "10.1.2.3")]
    for one in theirs:
        bench.put(one.key, one.value)
    bench.publication.want([A])
    assert (bench.step(), bench.step(10 * GRACE_S)) == ([], [])
    assert bench.publication.problems == ("another node calls itself n1 and has n1/x/a: --node names a node",)
    bench.publication.want([])
    assert (bench.step(), bench.publication.problems) == ([], ())
