"""The text of netfilter rules: what leaves the overlay is masqueraded, what is of the overlay may be forwarded. Pure.

Structure   C is the overlay's network, P this node's subnet of it
Styles      canal             ours, in one table of ours: table inet canal
            flannel-nft       flannel's, to the letter, in tables flannel-ipv4 and flannel-ipv6
            flannel-iptables  flannel's, to the letter, for iptables-restore
Difference  The fourth of flannel's nft rules is not that of its iptables rules: it lets everything towards the overlay
            through un-masqueraded, and the sixth can never hold. The text stays as others compare it; a chain of
            ours before it does what the iptables rules do.
Source      flannel pkg/trafficmngr/{iptables,nftables}; 0x4000 is kube-proxy's mark for what it masquerades itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network
Family = Literal[4, 6]
Style = Literal["canal", "flannel-nft", "flannel-iptables"]

MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
WORD = {4: "ip", 6: "ip6"}
OWN_TABLE = "inet canal"
FLANNEL_TABLES = {4: "ip flannel-ipv4", 6: "ip6 flannel-ipv6"}

# iptables table -> the chain that we jump from, our chain, the comment
CHAINS = {
    "nat": ("POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
    "filter": ("FORWARD", "FLANNEL-FWD", "flanneld forward"),
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What shall hold on this host."""

    style: Style
    pairs: tuple[tuple[Network, Network], ...]  # C, P of each family
    masq: bool
    forward: bool
    random: bool = True  # ports
    resync_s: int = 5
    key: str = "rules"

    @property
    def none(self) -> bool:
        """Tell whether there shall be no rules at all."""
        return not self.masq and not self.forward

    @property
    def tables(self) -> tuple[str, ...]:
        """The nft tables that are ours alone."""
        match self.style:
            case "canal":
                return (OWN_TABLE,)
            case "flannel-nft":
                return (*FLANNEL_TABLES.values(), OWN_TABLE)
        return ()


# ---- nft -------------------------------------------------------------------------------------------------------------


def nft_script(rules: Rules) -> str:
    """A script that puts the tables in the place of what they were, as one transaction."""
    return nft_removal(rules.tables) + "".join(_nft_table(rules, table) for table in rules.tables)


def nft_removal(tables: tuple[str, ...]) -> str:
    """A script that has those tables gone, whether they were there or not."""
    return "".join(f"add table {table}\ndelete table {table}\n" for table in tables)


def _nft_table(rules: Rules, table: str) -> str:
    if table != OWN_TABLE:
        body = "\n".join(_flannel_chains(rules, table))
    elif rules.style == "canal":
        body = "\n".join(_own_chains(rules))
    else:
        body = "\n".join(_corrections(rules))
    return f"table {table} {{\n{body}\n}}\n"


def _own_chains(rules: Rules) -> Iterator[str]:
    if rules.masq:
        yield "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;"
        yield "\t\tmeta mark & 0x00004000 == 0x00004000 return"
        for network, subnet in rules.pairs:
            yield from (f"\t\t{line}" for line in _masquerade(rules, network, subnet, f"daddr {subnet}"))
        yield "\t}"
    if rules.forward:
        yield "\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;"
        for network, _ in rules.pairs:
            yield from (f"\t\t{WORD[network.version]} {side} {network} accept" for side in ("saddr", "daddr"))
        yield "\t}"


def _corrections(rules: Rules) -> Iterator[str]:
    if rules.masq:
        yield "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat - 1; policy accept;"
        yield "\t\tmeta mark & 0x00004000 == 0x00004000 return"
        for network, subnet in rules.pairs:
            word = WORD[network.version]
            yield f"\t\t{word} saddr != {network} {word} daddr {subnet} return"
            yield f"\t\t{word} saddr != {network} {word} daddr {network} {_verdict(rules)}"
        yield "\t}"


def _flannel_chains(rules: Rules, table: str) -> Iterator[str]:
    yield f'\tcomment "rules for {table.split()[1]}"'
    for network, subnet in rules.pairs:
        if FLANNEL_TABLES[network.version] != table:
            continue
        if rules.masq:
            yield '\tchain postrtg {\n\t\tcomment "chain to manage traffic masquerading by flannel"'
            yield "\t\ttype nat hook postrouting priority srcnat; policy accept;"
            yield "\t\tmeta mark 0x00004000 return"
            yield from (f"\t\t{line}" for line in _masquerade(rules, network, subnet, f"daddr {network}", subnet))
            yield "\t}\n"
        if rules.forward:
            yield '\tchain forward {\n\t\tcomment "chain to accept flannel traffic"'
            yield "\t\ttype filter hook forward priority filter; policy accept;"
            yield from (f"\t\t{WORD[network.version]} {side} {network} accept" for side in ("saddr", "daddr"))
            yield "\t}"


def _masquerade(
    rules: Rules, network: Network, subnet: Network, fourth: str, foreign: Network | None = None
) -> Iterator[str]:
    """The rules after the mark; the fourth is where flannel's nft text and its iptables text differ."""
    word = WORD[network.version]
    yield f"{word} saddr {subnet} {word} daddr {network} return"
    yield f"{word} saddr {network} {word} daddr {subnet} return"
    yield f"{word} saddr != {foreign or network} {word} {fourth} return"
    yield f"{word} saddr {network} {word} daddr != {MULTICAST[network.version]} {_verdict(rules)}"
    yield f"{word} saddr != {network} {word} daddr {network} {_verdict(rules)}"


def _verdict(rules: Rules) -> str:
    return "masquerade fully-random" if rules.random else "masquerade"


# ---- iptables --------------------------------------------------------------------------------------------------------


def iptables_restore(rules: Rules, family: Family, saved: str) -> str:
    """A script for iptables-restore --noflush that makes of `saved` (iptables-save) what is wanted; empty: nothing.

    Each table is one transaction: our chain is refilled, the jump into it stays where it is.
    """
    pairs = [pair for pair in rules.pairs if pair[0].version == family]
    wanted = {
        "nat": [line for pair in pairs for line in _iptables_masq(rules, *pair)] if rules.masq else [],
        "filter": [line for pair in pairs for line in _iptables_forward(*pair)] if rules.forward else [],
    }
    return "".join(_iptables_table(table, lines, saved) for table, lines in wanted.items())


def iptables_ours(saved: str) -> list[str]:
    """The lines of iptables-save that are ours."""
    ours = tuple(chain for _, chain, _ in CHAINS.values())
    return [line.partition(" [")[0] for line in saved.splitlines() if any(f"{chain} " in f"{line} " for chain in ours)]


def _iptables_table(table: str, lines: list[str], saved: str) -> str:
    hook, chain, comment = CHAINS[table]
    jump = f'{hook} -m comment --comment "{comment}" -j {chain}'
    jumps = saved.splitlines().count(f"-A {jump}")
    if lines:
        changes = [f":{chain} - [0:0]", *(f"-A {chain} {line}" for line in lines)]
        changes += [f"-A {jump}"] if not jumps else [f"-D {jump}"] * (jumps - 1)
    elif f":{chain} " in saved:
        changes = [f":{chain} - [0:0]", *[f"-D {jump}"] * jumps, f"-X {chain}"]
    else:
        return ""
    return "\n".join([f"*{table}", *changes, "COMMIT", ""])


def _iptables_masq(rules: Rules, network: Network, subnet: Network) -> Iterator[str]:
    said = '-m comment --comment "flanneld masq"'
    masquerade = "MASQUERADE --random-fully" if rules.random else "MASQUERADE"
    yield f"-m mark --mark 0x4000/0x4000 {said} -j RETURN"
    yield f"-s {subnet} -d {network} {said} -j RETURN"
    yield f"-s {network} -d {subnet} {said} -j RETURN"
    yield f"! -s {network} -d {subnet} {said} -j RETURN"
    yield f"-s {network} ! -d {MULTICAST[network.version]} {said} -j {masquerade}"
    yield f"! -s {network} -d {network} {said} -j {masquerade}"


def _iptables_forward(network: Network, subnet: Network) -> Iterator[str]:
    said = '-m comment --comment "flanneld forward"'
    yield f"-s {network} {said} -j ACCEPT"
    yield f"-d {network} {said} -j ACCEPT"
