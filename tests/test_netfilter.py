"""The rules' text: flannel's to the letter, and what a script makes of rules that are there already."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from canal_udp.netfilter import Rules, iptables_ours, iptables_restore, nft_script

C, P = ip_network("10.42.0.0/16"), ip_network("10.42.1.0/24")
C6, P6 = ip_network("fd00:42::/48"), ip_network("fd00:42:0:1::/64")
RULES = Rules("flannel-iptables", ((C, P),), masq=True, forward=True)

GOLDEN_NAT = f"""\
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {P} -d {C} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {C} -d {P} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s {C} -d {P} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {C} ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {C} -d {C} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"""
GOLDEN_FILTER = f"""\
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s {C} -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d {C} -m comment --comment "flanneld forward" -j ACCEPT"""
GOLDEN_NFT = f"""\
table ip flannel-ipv4 {{
	comment "rules for flannel-ipv4"
	chain postrtg {{
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		ip saddr {P} ip daddr {C} return
		ip saddr {C} ip daddr {P} return
		ip saddr != {P} ip daddr {C} return
		ip saddr {C} ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != {C} ip daddr {C} masquerade fully-random
	}}

	chain forward {{
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip saddr {C} accept
		ip daddr {C} accept
	}}
}}
"""
SAVED = f"*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n{GOLDEN_NAT}\nCOMMIT\n"


def test_iptables_text_is_flannels() -> None:
    lines = [line for line in iptables_restore(RULES, 4, "").splitlines() if line.startswith("-A")]
    assert sorted(lines) == sorted(f"{GOLDEN_NAT}\n{GOLDEN_FILTER}".splitlines())
    assert [line for line in lines if "-A FLANNEL-POSTRTG" in line] == GOLDEN_NAT.splitlines()[1:]
    assert "--random-fully" not in iptables_restore(replace(RULES, random=False), 4, "")
    assert iptables_restore(RULES, 6, "") == ""


def test_iptables_text_of_ipv6() -> None:
    text = iptables_restore(replace(RULES, pairs=((C, P), (C6, P6))), 6, "")
    assert f"-A FLANNEL-POSTRTG -s {C6} ! -d ff00::/8 " in text and "224.0.0.0" not in text and str(C) not in text


@pytest.mark.parametrize(
    ("saved", "changes"),
    [
        pytest.param("", ["-A"], id="a first start adds the jump at the end"),
        pytest.param(SAVED, [], id="a jump that is there stays where it is"),
        pytest.param(SAVED.replace("-A POST", "-A POSTROUTING -j KUBE\n-A POST"), [], id="also after others"),
        pytest.param(SAVED.replace("COMMIT", GOLDEN_NAT), ["-D"], id="a second one goes"),
    ],
)
def test_the_jump_is_there_once(saved: str, changes: list[str]) -> None:
    text = iptables_restore(replace(RULES, forward=False), 4, saved)
    assert text.startswith("*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG -m mark"), "refilled, never flushed"
    assert [line[:2] for line in text.splitlines() if line[3:].startswith("POSTROUTING")] == changes


def test_rules_that_are_not_wanted_go() -> None:
    none = replace(RULES, masq=False, forward=False)
    assert iptables_restore(none, 4, "") == "", "nothing was there"
    jump = 'POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG'
    assert iptables_restore(none, 4, SAVED) == (
        f"*nat\n:FLANNEL-POSTRTG - [0:0]\n-D {jump}\n-X FLANNEL-POSTRTG\nCOMMIT\n"
    )


def test_what_is_ours_of_what_iptables_saves() -> None:
    saved = SAVED.replace(":POST", "-A KUBE-POSTROUTING -j RETURN\n-A X -j FLANNEL-POSTRTG-OTHER\n:POST")
    assert iptables_ours(saved) == [":FLANNEL-POSTRTG -", *GOLDEN_NAT.splitlines()]


def test_nft_text_is_flannels() -> None:
    script = nft_script(replace(RULES, style="flannel-nft"))
    assert GOLDEN_NFT in script
    assert script.startswith("add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n"), "one transaction, no gap"
    assert 'table ip6 flannel-ipv6 {\n\tcomment "rules for flannel-ipv6"\n}\n' in script


def test_our_own_nft_text() -> None:
    script = nft_script(Rules("canal", ((C, P), (C6, P6)), masq=True, forward=True, random=False))
    assert script.count("table inet canal {") == 1 and "flannel" not in script
    assert f"\t\tip saddr != {C} ip daddr {P} return\n" in script, "the fourth rule of the iptables text"
    assert f"\t\tip6 saddr {C6} ip6 daddr != ff00::/8 masquerade\n" in script
