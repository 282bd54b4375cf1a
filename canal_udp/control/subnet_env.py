"""subnet.env: what flannel's CNI plugin, mk-docker-opts.sh and systemd units read. Pure but for `write` and `read`.

Structure  lines in this order, a newline after each, nothing else:
               FLANNEL_NETWORK=10.42.0.0/16            only with IPv4
               FLANNEL_SUBNET=10.42.5.1/24             the subnet's first host, with the subnet's length
               FLANNEL_IPV6_NETWORK=2001:cafe:42::/56  only with IPv6
               FLANNEL_IPV6_SUBNET=2001:cafe:42:5::1/64
               FLANNEL_MTU=1450
               FLANNEL_IPMASQ=false
Source     flannel pkg/subnet/subnet.go
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path

from canal_udp.net import first_host

_READ_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What the file says."""

    network: IPv4Network | None
    subnet: IPv4Network | None
    network6: IPv6Network | None
    subnet6: IPv6Network | None
    mtu_bytes: int
    ip_masq: bool = False

    def text(self) -> str:
        """Return the file's content."""
        lines = []
        if self.network and self.subnet:
            lines += [f"FLANNEL_NETWORK={self.network}", f"FLANNEL_SUBNET={_first(self.subnet)}"]
        if self.network6 and self.subnet6:
            lines += [f"FLANNEL_IPV6_NETWORK={self.network6}", f"FLANNEL_IPV6_SUBNET={_first(self.subnet6)}"]
        lines += [f"FLANNEL_MTU={self.mtu_bytes}", f"FLANNEL_IPMASQ={'true' if self.ip_masq else 'false'}"]
        return "".join(line + "\n" for line in lines)


def previous_subnets(text: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """Return the subnets of an earlier run; what cannot be understood, or is several, counts as none."""
    values = dict(line.strip().partition("=")[::2] for line in text.splitlines() if "=" in line)
    subnet = _network(values.get("FLANNEL_SUBNET", ""))
    subnet6 = _network(values.get("FLANNEL_IPV6_SUBNET", ""))
    return subnet if isinstance(subnet, IPv4Network) else None, subnet6 if isinstance(subnet6, IPv6Network) else None


def write(path: Path, text: str) -> None:
    """Replace the file at once, mode 0644 whatever the umask, its directory made if it is not there."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace_file(path, text.encode("ascii"), 0o644, durable=False)


def read(path: Path) -> str:
    """Return the file's text; empty if there is none that can be read."""
    try:
        with path.open("rb") as file:
            return file.read(_READ_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def replace_file(path: Path, content: bytes, mode: int, *, durable: bool = True) -> None:
    """Put `content` at `path`: a reader sees the old file or the new one, also after a crash at any point.

    Arguments  durable: also after a power failure; not needed for what a reboot makes void, and slow.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what `replace_file` of killed processes left in a directory."""
    for path in folder.glob(".*"):
        process = path.suffix[1:]
        if process.isdecimal() and not Path("/proc", process).exists():
            path.unlink(missing_ok=True)


def _first(subnet: IPv4Network | IPv6Network) -> str:
    return f"{first_host(subnet)}/{subnet.prefixlen}"


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_interface(text.strip().strip("\"'")).network
    except ValueError:
        return None
