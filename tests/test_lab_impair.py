"""What impairments do to frames: the relay's decisions, and the rules for the kernel's own means."""

from __future__ import annotations

import random

import pytest

from canal_udp.lab.impair import (
    HELD_MAX_S,
    Impairer,
    Impairment,
    Means,
    corrupted,
    means,
    netem_args,
    nft_ruleset,
)
from canal_udp.lab.relay import Switch

FRAMES = [b"\x02" * 12 + b"\x08\x00" + number.to_bytes(4, "big") + bytes(60) for number in range(2000)]


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[14:18], "big")


def through(spec: Impairment, frames: list[bytes] = FRAMES, gap_s: float = 0.001) -> tuple[list[bytes], Impairer]:
    """Everything that comes out when frames come in one by one, `gap_s` apart."""
    impairer = Impairer(spec)
    out = []
    for index, frame in enumerate(frames):
        now = index * gap_s
        impairer.push(0, frame, now)
        out += [found for _, found in impairer.due(now)]
    out += [found for _, found in impairer.due(float("inf"))]
    return out, impairer


def test_without_impairments_frames_leave_as_they_came() -> None:
    out, impairer = through(Impairment())
    assert out == FRAMES
    assert impairer.counts == {"seen": len(FRAMES)}


def test_a_seed_repeats_its_decisions_whatever_the_clock_does() -> None:
    spec = Impairment(loss_percent=5, duplicate_percent=5, reorder_percent=10, corrupt_percent=2, seed=3)
    first, _ = through(spec, gap_s=0.0001)
    second, _ = through(spec, gap_s=0.0003)
    assert first == second
    assert first != through(spec.changed(seed=4))[0]


def test_turning_one_knob_does_not_change_what_another_decides() -> None:
    lost = {number_of(f) for f in FRAMES} - {number_of(f) for f in through(Impairment(loss_percent=5, seed=1))[0]}
    both = Impairment(loss_percent=5, duplicate_percent=20, seed=1)
    assert lost == {number_of(f) for f in FRAMES} - {number_of(f) for f in through(both)[0]}


@pytest.mark.parametrize("percent", [0.5, 1, 5, 20])
def test_loss_is_about_its_share(percent: float) -> None:
    out, impairer = through(Impairment(loss_percent=percent, seed=1))
    assert len(out) == len(FRAMES) - impairer.counts["lost"]
    assert impairer.counts["lost"] == pytest.approx(len(FRAMES) * percent / 100, rel=0.6)


def test_all_and_nothing() -> None:
    assert through(Impairment(loss_percent=100))[0] == []
    assert len(through(Impairment(duplicate_percent=100))[0]) == 2 * len(FRAMES)


def test_frames_are_conserved() -> None:
    seed = random.randrange(1 << 30)
    spec = Impairment(loss_percent=3, duplicate_percent=7, reorder_percent=10, delay_ms=5, jitter_ms=2, seed=seed)
    out, impairer = through(spec)
    counts = impairer.counts
    assert len(out) == counts["seen"] - counts["lost"] + counts["duplicated"], f"seed {seed}"
    assert impairer.next_due() is None


def test_reordered_frames_are_overtaken_by_a_few_and_nothing_else_changes_place() -> None:
    out, impairer = through(Impairment(reorder_percent=10, seed=1), gap_s=0.00001)
    numbers = [number_of(frame) for frame in out]
    assert sorted(numbers) == list(range(len(FRAMES)))
    assert impairer.counts["reordered"] > 100
    assert 0 < max(abs(place - number) for place, number in enumerate(numbers)) <= 10


def test_a_held_frame_does_not_wait_for_ever() -> None:
    impairer = Impairer(Impairment(reorder_percent=100))
    impairer.push(0, FRAMES[0], 1.0)
    assert impairer.due(1.0) == []
    assert impairer.next_due() == pytest.approx(1.0 + HELD_MAX_S)
    assert impairer.due(1.0 + HELD_MAX_S) == [(0, FRAMES[0])]


def test_delay_and_jitter_keep_the_order() -> None:
    impairer = Impairer(Impairment(delay_ms=20, jitter_ms=15, seed=1))
    for index, frame in enumerate(FRAMES[:100]):
        impairer.push(0, frame, index * 0.001)
    assert impairer.due(0.004) == []
    assert [frame for _, frame in impairer.due(1.0)] == FRAMES[:100]


def test_delay_is_that_long() -> None:
    impairer = Impairer(Impairment(delay_ms=20))
    impairer.push(0, FRAMES[0], 5.0)
    assert impairer.next_due() == pytest.approx(5.020)
    assert impairer.due(5.0199) == []
    assert impairer.due(5.0201) == [(0, FRAMES[0])]


def test_a_rate_spaces_frames_and_drops_what_would_wait_too_long() -> None:
    frame = bytes(1250)  # 10 ms at 1 Mbit/s
    impairer = Impairer(Impairment(rate_mbit=1))
    for _ in range(20):
        impairer.push(0, frame, 0.0)
    assert impairer.counts["queue_full"] == 9
    assert impairer.due(0.0099) == []
    assert len(impairer.due(0.0101)) == 1
    assert len(impairer.due(1.0)) == 10


def test_ports_do_not_share_a_rate() -> None:
    impairer = Impairer(Impairment(rate_mbit=1))
    impairer.push(0, bytes(1250), 0.0)
    impairer.push(1, bytes(1250), 0.0)
    assert len(impairer.due(0.0101)) == 2


@pytest.mark.parametrize(("size", "passes"), [(1300, True), (1301, False)])
def test_a_black_hole_swallows_larger_packets_only(size: int, passes: bool) -> None:
    out, impairer = through(Impairment(blackhole_bytes=1300), [bytes(14 + size)])
    assert bool(out) == passes and impairer.counts["black_hole"] == (not passes)


def test_corruption_flips_one_bit_behind_the_ethernet_header() -> None:
    source = random.Random(1)
    for frame in FRAMES[:200]:
        changed = corrupted(frame, source)
        difference = int.from_bytes(frame, "big") ^ int.from_bytes(changed, "big")
        assert difference.bit_count() == 1 and changed[:14] == frame[:14]
    assert corrupted(bytes(14), source) == bytes(14)


@pytest.mark.parametrize(
    ("impairment", "netem", "expected"),
    [
        pytest.param(Impairment(), True, "none", id="nothing asked for"),
        pytest.param(Impairment(seed=1), True, "none", id="a seed alone is nothing"),
        pytest.param(Impairment(loss_percent=1), True, "nft", id="loss is cheapest in nftables"),
        pytest.param(Impairment(blackhole_bytes=1300), False, "nft", id="a black hole too"),
        pytest.param(Impairment(loss_percent=1, delay_ms=1), True, "netem", id="netem where it exists"),
        pytest.param(Impairment(loss_percent=1, delay_ms=1), False, "relay", id="the relay where it does not"),
        pytest.param(Impairment(loss_percent=1, seed=1), True, "relay", id="a seed needs the relay"),
    ],
)
def test_the_lightest_means_that_can_do_it(impairment: Impairment, netem: bool, expected: Means) -> None:
    assert means(impairment, netem) == expected


def test_nft_rules_replace_those_before() -> None:
    rules = nft_ruleset("t", Impairment(loss_percent=1.5, blackhole_bytes=1300), with_loss=True)
    assert rules.startswith("table bridge t\ndelete table bridge t\n")
    assert "meta length > 1300" in rules and "numgen random mod 100000 < 1500" in rules
    assert "numgen" not in nft_ruleset("t", Impairment(loss_percent=1), with_loss=False)
    assert "numgen random mod 100000 < 1 " in nft_ruleset("t", Impairment(loss_percent=0.0001), with_loss=True)
    assert '\n    counter drop comment "loss"' in nft_ruleset("t", Impairment(loss_percent=100), with_loss=True)


@pytest.mark.parametrize(
    ("impairment", "expected"),
    [
        (Impairment(delay_ms=20, jitter_ms=5, loss_percent=1), "limit 10000 delay 20ms 5ms loss 1%"),
        (Impairment(reorder_percent=10), "limit 10000 delay 1ms reorder 10%"),
        (Impairment(duplicate_percent=1, corrupt_percent=0.5), "limit 10000 duplicate 1% corrupt 0.5%"),
        (Impairment(rate_mbit=20), "limit 10000 rate 20mbit"),
    ],
)
def test_netem_arguments(impairment: Impairment, expected: str) -> None:
    assert " ".join(netem_args(impairment)) == expected


def test_descriptions() -> None:
    assert Impairment().describe() == "none"
    assert Impairment(loss_percent=1, blackhole_bytes=1300).describe() == "loss 1 %, black hole above 1300 bytes"


def test_the_switch_learns_and_floods() -> None:
    switch = Switch(3)
    one, two, everyone = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", b"\xff" * 6
    assert switch.targets(0, two + one) == [1, 2], "unknown: to all others"
    switch.learn(0, two + one)
    assert switch.targets(2, one + two) == [0]
    assert switch.targets(0, one + two) == [], "it is where it came from"
    assert switch.targets(1, everyone + two) == [0, 2]
    switch.learn(2, one + one)
    assert switch.targets(1, one + two) == [2], "it moved"
    switch.learn(2, one + everyone)
    assert switch.targets(1, everyone + two) == [0, 2], "a group is no station"
