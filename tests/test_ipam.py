"""Pod addresses: what is handed out, and that no crash or full disk loses or doubles one."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_udp.cni.ipam import Claim, Ipam, Pool
from canal_udp.errors import AddressError, AddressTaken
from canal_udp.net import Address

SUBNET, SUBNET6 = IPv4Network("10.244.1.0/24"), IPv6Network("fd00:0:0:1::/64")
SMALL = IPv4Network("10.244.1.0/29")  # .2 to .6


def texts(addresses: tuple[Address, ...]) -> list[str]:
    return [str(address) for address in addresses]


# ---- the pool --------------------------------------------------------------------------------------------------------


def test_first_addresses_of_both_families() -> None:
    pool = Pool(SUBNET, SUBNET6).allocate("a").allocate("b")
    assert texts(pool.addresses("a")) == ["10.244.1.2", "fd00:0:0:1::2"]
    assert texts(pool.addresses("b")) == ["10.244.1.3", "fd00:0:0:1::3"]


def test_asking_again_changes_nothing() -> None:
    pool = Pool(SUBNET, SUBNET6).allocate("a")
    assert pool.allocate("a") is pool
    assert pool.allocate("a", [IPv4Address("10.244.1.2")]) is pool
    assert pool.release("nobody") is pool


def test_node_bridge_and_broadcast_are_never_handed_out() -> None:
    pool = Pool(SMALL, None)
    for name in "abcde":
        pool = pool.allocate(name)
    assert sorted(int(a) & 7 for name in "abcde" for a in pool.addresses(name)) == [2, 3, 4, 5, 6]
    with pytest.raises(AddressError, match=r"no address left in 10\.244\.1\.0/29: all 5 are in use"):
        pool.allocate("f")


def test_a_freed_address_rests_as_long_as_possible() -> None:
    pool = Pool(SMALL, None).allocate("a").release("a")
    given_out = []
    for n in range(6):
        pool = pool.allocate(str(n))
        given_out += texts(pool.addresses(str(n)))
        pool = pool.release(str(n))
    assert given_out == [f"10.244.1.{n}" for n in (3, 4, 5, 6, 2, 3)]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        pytest.param("10.244.2.2", "is not in 10.244.1.0/24", id="another node's subnet"),
        pytest.param("fd00::2", "is not in", id="a family that we have not"),
        pytest.param("10.244.1.0", "is reserved", id="the node's own"),
        pytest.param("10.244.1.1", "is reserved", id="the bridge's"),
        pytest.param("10.244.1.255", "is reserved", id="broadcast"),
        pytest.param("10.244.1.2", "belongs to a", id="another pod's"),
    ],
)
def test_wanted_and_refused(wanted: str, problem: str) -> None:
    with pytest.raises(AddressError, match=problem):
        Pool(SUBNET, None).allocate("a").allocate("b", [ip_address(wanted)])


def test_a_wanted_address_and_an_automatic_one_of_the_other_family() -> None:
    pool = Pool(SUBNET, SUBNET6).allocate("a", [IPv6Address("fd00:0:0:1::beef")])
    assert texts(pool.addresses("a")) == ["10.244.1.2", "fd00:0:0:1::beef"]


def test_a_name_cannot_move() -> None:
    with pytest.raises(AddressError, match=r"a has 10\.244\.1\.2 already, not 10\.244\.1\.9"):
        Pool(SUBNET, None).allocate("a").allocate("a", [IPv4Address("10.244.1.9")])


def test_the_last_ipv6_address_is_an_address_like_others() -> None:
    last = SUBNET6.broadcast_address
    assert Pool(None, SUBNET6).allocate("a", [last]).addresses("a") == (last,)


def test_a_host_subnet_too_small_for_pods() -> None:
    with pytest.raises(AddressError, match="no address left"):
        Pool(IPv4Network("10.244.1.0/31"), None).allocate("a")


def test_a_new_family_is_added_to_a_name_that_has_one() -> None:
    pool = Pool(SUBNET, SUBNET6, names=Pool(SUBNET, None).allocate("a").names)
    assert texts(pool.allocate("a").addresses("a")) == ["10.244.1.2", "fd00:0:0:1::2"]


# ---- against a slow model --------------------------------------------------------------------------------------------

operations = st.lists(
    st.tuples(st.sampled_from("acr"), st.integers(0, 9), st.integers(0, 15)),
    max_size=60,
)


@given(operations)
def test_any_history_keeps_the_invariants(history: list[tuple[str, int, int]]) -> None:
    """a: allocate, c: allocate a chosen address, r: release. The model is a plain dict."""
    subnet = IPv4Network("10.0.0.0/28")
    pool, model = Pool(subnet, None), dict[str, IPv4Address]()
    usable = {subnet[n] for n in range(2, 15)}
    for what, number, choice in history:
        name = str(number)
        if what == "r":
            pool = pool.release(name)
            model.pop(name, None)
            continue
        wanted = [subnet[choice]] if what == "c" else []
        others = {address for other, address in model.items() if other != name}
        possible = usable - others if name not in model else {model[name]}
        allowed = bool(possible & set(wanted)) if wanted else bool(possible)
        try:
            pool = pool.allocate(name, wanted)
        except AddressError:
            assert not allowed
            continue
        assert allowed
        (address,) = pool.addresses(name)
        assert address in possible
        assert isinstance(address, IPv4Address)
        model[name] = address
    assert {name: pool.addresses(name) for name in pool.names} == {name: (address,) for name, address in model.items()}


# ---- the file --------------------------------------------------------------------------------------------------------


def test_what_was_returned_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ipam.json"
    ipam = Ipam(path, SUBNET, SUBNET6)
    assert texts(ipam.allocate("ns/a")) == ["10.244.1.2", "fd00:0:0:1::2"]
    assert ipam.allocate("ns/b") and ipam.release("ns/a") and not ipam.release("ns/a")
    again = Ipam(path, SUBNET, SUBNET6)
    assert again.pool == ipam.pool
    assert texts(again.allocate("ns/c")) == ["10.244.1.4", "fd00:0:0:1::4"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["ipam.json"]


def test_a_node_with_a_new_subnet_gives_new_addresses_and_remembers_the_old(tmp_path: Path) -> None:
    path = tmp_path / "ipam.json"
    Ipam(path, SUBNET, None).allocate("a")
    moved = Ipam(path, IPv4Network("10.244.9.0/24"), None)
    assert moved.pool.addresses("a") == ()
    assert moved.pool.names["a"] == (IPv4Address("10.244.1.2"),)
    assert texts(moved.allocate("a")) == ["10.244.9.2"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"version": 1, "last": [], "nam', id="truncated"),
        pytest.param(b"\xff" * 100, id="no text"),
        pytest.param(b'{"version": 2, "last": [], "names": {}}', id="another version"),
        pytest.param(b'{"version": 1, "last": [], "names": {"a": ["x"]}}', id="no address"),
        pytest.param(
            b'{"version": 1, "last": [], "names": {"a": ["10.244.1.2"], "b": ["10.244.1.2"]}}', id="two names"
        ),
        pytest.param(b'{"version": 1, "last": [], "names": {"a": 1}}', id="wrong type"),
        pytest.param(b'{"a":' * 100_000, id="deep"),
    ],
)
def test_a_file_of_garbage_is_moved_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ipam.json"
    path.write_bytes(content)
    ipam = Ipam(path, SUBNET, None)
    assert ipam.pool.names == {}
    (aside,) = tmp_path.glob("ipam.json.corrupt-*")
    assert aside.read_bytes() == content
    assert "ipam.corrupt" in caplog.text
    assert ipam.allocate("a")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("step", ["open", "fsync", "replace", "fsync directory"])
@pytest.mark.parametrize(
    "fault", [Killed, OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full disk"]
)
def test_a_write_that_dies_anywhere_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fault: type[Killed] | OSError
) -> None:
    path = tmp_path / "ipam.json"
    ipam = Ipam(path, SUBNET, None)
    ipam.allocate("a")
    before = ipam.pool
    monkeypatch.setattr(os, *die_at(step, fault))
    with pytest.raises(Killed if fault is Killed else AddressError) as caught:
        ipam.allocate("b")
    monkeypatch.undo()
    if fault is not Killed:
        assert str(caught.value) == f"{path}: No space left on device; nothing was changed"
    assert ipam.pool == before
    restarted = Ipam(path, SUBNET, None)
    after = before.allocate("b")
    assert restarted.pool == (after if step == "fsync directory" else before)
    assert texts(restarted.allocate("b")) == texts(ipam.allocate("b")) == ["10.244.1.3"]


def die_at(step: str, fault: type[Killed] | OSError) -> tuple[str, Callable[..., object]]:
    """Which function of os to replace, by one that fails at that step of a write."""
    name, at = {"open": ("open", 1), "fsync": ("fsync", 1), "replace": ("replace", 1), "fsync directory": ("fsync", 2)}[
        step
    ]
    real, calls = getattr(os, name), iter(range(1, 99))

    def dies(*args: object, **kwargs: object) -> object:
        if next(calls) == at:
            raise fault
        return real(*args, **kwargs)

    return name, dies


@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_kills_at_random_places_never_double_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, path = random.Random(seed), tmp_path / "ipam.json"
    promised: dict[str, tuple[Address, ...]] = {}
    for n in range(200):
        step = rng.choice(["open", "fsync", "replace", "fsync directory", "none"])
        name = f"pod{rng.randrange(30)}"
        with monkeypatch.context() as patched:
            if step != "none":
                patched.setattr(os, *die_at(step, Killed))
            with contextlib.suppress(Killed):  # the next round starts the process again
                ipam = Ipam(path, SMALL.supernet(new_prefix=26), None)
                if rng.random() < 0.4:
                    promised.pop(name, None)  # once asked for, it may or may not have happened
                    ipam.release(name)
                else:
                    promised[name] = ipam.allocate(name)
        pool = Ipam(path, SMALL.supernet(new_prefix=26), None).pool
        every = [address for addresses in pool.names.values() for address in addresses]
        assert len(every) == len(set(every)), f"seed {seed} round {n}"
        assert all(pool.addresses(name) == addresses for name, addresses in promised.items()), f"seed {seed} round {n}"


def test_many_claims_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ipam = Ipam(tmp_path / "ipam.json", SUBNET, None)
    written: list[object] = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: written.append(paths) or real(*paths))
    taken = ip_address("10.244.1.2")
    a, b, c = ipam.allocate_all([Claim("a"), Claim("b", (taken,)), Claim("c")])
    assert (a, c) == ((taken,), (ip_address("10.244.1.3"),))
    assert isinstance(b, AddressError) and str(b) == "10.244.1.2 belongs to a"
    assert ipam.release("a", "c", "nobody") is True
    assert len(written) == 2 and not ipam.pool.names


# ---- addresses that rest, and ranges ---------------------------------------------------------------------------------


def test_an_address_rests_but_not_for_who_asks_for_it() -> None:
    pool = Pool(SMALL, None, rest_s=30.0)
    for name in "abcde":
        pool = pool.allocate(name, now=100.0)
    pool = pool.release("c", now=110.0)
    with pytest.raises(AddressTaken, match="all 5 are in use, or were until 30 s ago"):
        pool.allocate("x", now=139.9)
    assert texts(pool.allocate("x", now=140.0).addresses("x")) == ["10.244.1.4"]
    assert texts(pool.allocate("x", [ip_address("10.244.1.4")], now=111.0).addresses("x")) == ["10.244.1.4"]
    assert texts(pool.allocate("x", now=50.0).addresses("x")) == ["10.244.1.4"], "the clock was set back"
    assert pool.allocate("x", now=150.0).freed == {}


def test_rest_outlives_the_process(tmp_path: Path) -> None:
    path, only = tmp_path / "ipam.json", [(ip_address("10.244.1.9"), ip_address("10.244.1.9"))]
    ipam = Ipam(path, SUBNET, None, rest_s=1e6)
    ipam.allocate("a", within=only)
    ipam.release("a")
    with pytest.raises(AddressTaken):
        Ipam(path, SUBNET, None, rest_s=1e6).allocate("b", within=only)
    assert texts(Ipam(path, SUBNET, None).allocate("b", within=only)) == ["10.244.1.9"]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda two: (min(two), max(two))), max_size=3),
    st.integers(1, 12),
)
def test_ranges_give_exactly_their_addresses(ends: list[tuple[int, int]], count: int) -> None:
    base = IPv4Address("10.244.1.0")
    within = [(base + first, base + last) for first, last in ends]
    wanted = {base + n for n in range(2, 7) if not ends or any(first <= n <= last for first, last in ends)}
    pool, given_ = Pool(SMALL, None), set()
    for number in range(count):
        try:
            pool = pool.allocate(str(number), within=within)
        except AddressError:
            break
        given_ |= set(pool.addresses(str(number)))
    assert given_ <= wanted and len(given_) == min(count, len(wanted))
