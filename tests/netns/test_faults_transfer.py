"""A gibibyte through a bad network: what arrives is what was sent, and the tunnel adds no loss of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from canal_udp.lab.faults import relay_counts
from tests.netns.bed import Bed, drain, laboratory

LAB = """
networks: {{core: {{profile: {profile}}}}}
overlay: {{network: 10.244.0.0/16, encap: {encap}}}
nodes: {{a: {{pods: [p]}}, b: {{pods: [q]}}}}
faults: {{core: {faults}}}
"""
STREAMS = 16  # one would spend its time recovering from loss
GIB = 1 << 30


@pytest.fixture
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB.format(**request.param), "t-bad", tmp_path_factory.mktemp("lab")) as bed:
        yield bed
        bed.settle()


def impaired(faults: str, encap: str = "vxlan", profile: str = "wire") -> dict[str, str]:
    return {"faults": faults, "encap": encap, "profile": profile}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "bed", [impaired("{loss: 1, reorder: 10, duplicate: 5, seed: 3}")], indirect=True, ids=["vxlan"]
)
def test_a_gibibyte(bed: Bed) -> None:
    """Both digests of each stream are equal; every packet that came out of the relay was delivered once."""
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda _: bed.transfer("p", "q", GIB // STREAMS), range(STREAMS)))
    bed.settle()
    counts = Counter(relay_counts(bed.state, "core"))
    assert min(counts[name] for name in ("lost", "reordered", "duplicated")) > GIB / 1500 / 200
    for node in ("a", "b"):
        assert set(bed.drops(node)) <= {"martian"}
    assert bed.counter("b", "rx_underlay") >= GIB / 1450


@pytest.mark.parametrize(
    "bed",
    [
        pytest.param(impaired("{loss: 5, seed: 1}", "udp"), id="loss"),
        pytest.param(impaired("{delay: 25, jitter: 10, seed: 1}"), id="delay"),
        pytest.param(impaired("{corrupt: 1, seed: 1}", "udp"), id="corruption"),
        pytest.param(impaired("{reorder: 10, duplicate: 20, seed: 1}", "vxlan", "native"), id="order"),
    ],
    indirect=True,
)
def test_each_impairment(bed: Bed) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bed.transfer("p", "q", 1 << 20), range(4)))


@pytest.mark.parametrize("bed", [impaired("{loss: 20, seed: 1}")], indirect=True, ids=["vxlan"])
def test_the_tunnel_adds_no_loss(bed: Bed) -> None:
    """What the network lost is all that is missing."""
    sent, burst = 2000, 100  # which waits in the relay's socket, however busy the machine is
    know_each_other(bed)
    with bed.sock("p") as client, bed.receiver("q") as server, bed.dropping("b"):
        before = bed.counter("b", "tx_pod")
        arrived = []
        for start in range(0, sent, burst):
            for number in range(start, start + burst):
                client.sendto(number.to_bytes(2, "big"), server.getsockname())
            arrived += drain(server, burst, 0.1)
        found = [int.from_bytes(one, "big") for one in arrived + drain(server, sent, 1.0)]
        assert found == sorted(set(found))
        assert len(found) == bed.counter("b", "tx_pod") - before
    gaps = [(a, b) for a, b in pairwise([-1, *found, sent]) if b - a > 12]
    assert 0.7 * sent < len(found) < 0.9 * sent, f"gaps {gaps}, relay {relay_counts(bed.state, 'core')}"
    assert not bed.drops("a")


def know_each_other(bed: Bed) -> None:
    """For good: an ARP request that is lost would hold up a second of datagrams."""
    for node, peer in (("a", "b"), ("b", "a")):
        (link,) = json.loads(bed.run(peer, "ip -j -4 addr show dev eth0"))
        mac = json.loads(bed.run(peer, "ip -j link show dev eth0"))[0]["address"]
        bed.run(node, f"ip neigh replace {link['addr_info'][0]['local']} lladdr {mac} nud permanent dev eth0")


@pytest.mark.parametrize("bed", [impaired("{duplicate: 100, seed: 1}")], indirect=True, ids=["vxlan"])
def test_duplicates_are_not_multiplied(bed: Bed) -> None:
    """Each datagram arrives exactly as often as the network delivered it."""
    with bed.sock("p") as client, bed.receiver("q") as server:
        for number in range(100):
            client.sendto(bytes([number]), server.getsockname())
        server.settimeout(1.0)
        found = [server.recv(16) for _ in range(200)]
        assert sorted(found) == sorted([bytes([number]) for number in range(100)] * 2)
        with pytest.raises(TimeoutError):
            server.recv(16)
