"""Later fragments of a datagram whose first one passed before the policies changed: they have no ports of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Packet

from canal_udp.policy.compile import Engine
from canal_udp.policy.compiled import Compiled
from canal_udp.policy.model import State
from tests.bed import Bed
from tests.policies import np, world
from tests.test_policy_compile import changes

PORT = 5000


def datagram(identity: int) -> list[Packet]:
    packet = IP(src="10.1.2.2", dst="10.1.1.2", id=identity) / UDP(sport=4000, dport=PORT) / bytes(3000)
    return [IP(bytes(part)) for part in fragment(IP(bytes(packet)), 1400)]


def compiled(spec: str) -> Compiled:
    """Pod a of the bed is pod a of namespace x."""
    engine = Engine()
    engine.apply(changes(State(), world(np("x", "{matchLabels: {pod: a}}", spec))))
    return engine.compile({"a": "x/a"})


def publish(bed: Bed, policy: Compiled) -> None:
    bed.generation += 1
    bed.forwarding = replace(bed.forwarding, generation=bed.generation)
    bed.dp.publish(bed.forwarding, policy)


@pytest.mark.parametrize(
    ("port", "passes"),
    [pytest.param(PORT, True, id="still allowed, by its port"), pytest.param(PORT + 1, False, id="denied meanwhile")],
)
def test_a_datagram_across_a_change_of_policy(port: int, passes: bool) -> None:
    """Once denied the flow is forgotten; what still comes of the datagram is denied as its flow would be."""
    with Bed() as bed:
        first, second, third = datagram(1)
        assert len(bed.push(bed.from_peer(first))) == 1
        publish(bed, compiled(f"ingress: [{{ports: [{{protocol: UDP, port: {port}}}]}}]"))
        delivered = [frame.data[10:] for frame in bed.push(bed.from_peer(second), bed.from_peer(third))]
        assert delivered == ([bytes(second), bytes(third)] if passes else [])
        assert bed.drops() == ({} if passes else {"policy": 2})
        whole = bed.push(*(bed.from_peer(part) for part in datagram(2)))
        assert len(whole) == (3 if passes else 0)
