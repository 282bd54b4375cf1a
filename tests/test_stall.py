"""TCP segments that are sent again: a hint that the path may lose them, by the C side to the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import run_native
from scapy.layers.inet import IP, TCP

from tests.bed import Bed, from_tun


def test_what_counts_as_sent_again(tmp_path: Path) -> None:
    run_native(tmp_path, "test_stall.c", [])


@pytest.mark.parametrize(
    ("size", "told"),
    [pytest.param(1300, True, id="a large segment"), pytest.param(300, False, id="a small one says nothing")],
)
def test_a_segment_that_is_sent_again_is_told(size: int, told: bool) -> None:
    with Bed() as bed:
        segment = IP(src="10.1.1.2", dst="10.1.2.2", flags="DF") / TCP(sport=1, dport=2, flags="A", seq=5) / bytes(size)
        bed.push(from_tun(bed.a, segment))
        assert bed.dp.events() == []
        bed.push(from_tun(bed.a, segment))
        assert [one.kind for one in bed.dp.events()] == (["stalled"] if told else [])
