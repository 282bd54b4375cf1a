"""What can be done to make a lab, as values: `plan.py` makes them, `host.py` does them, `--plan` prints them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Netns:
    """Make a network namespace."""

    name: str

    def shell(self) -> str:
        return f"ip netns add {self.name}"


@dataclass(frozen=True, slots=True)
class Ip:
    """One `ip` command inside a namespace."""

    netns: str
    args: str

    def shell(self) -> str:
        return f"ip -n {self.netns} {self.args}"


@dataclass(frozen=True, slots=True)
class Bridge:
    """One `bridge` command inside a namespace."""

    netns: str
    args: str

    def shell(self) -> str:
        return f"bridge -n {self.netns} {self.args}"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One sysctl inside a namespace; a / in the key is a dot of a device's name."""

    netns: str
    key: str
    value: str
    optional: bool = False  # the kernel may lack it, or refuse it

    def shell(self) -> str:
        ignore = "-e " if self.optional else ""
        return f"ip netns exec {self.netns} sysctl -qw {ignore}{shlex.quote(f'{self.key}={self.value}')}"


@dataclass(frozen=True, slots=True)
class Offloads:
    """`ethtool -K` inside a namespace."""

    netns: str
    device: str
    features: str

    def shell(self) -> str:
        return f"ip netns exec {self.netns} ethtool -K {self.device} {self.features}"


Step: TypeAlias = Netns | Ip | Bridge | Sysctl | Offloads
