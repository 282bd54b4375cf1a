"""The lab file: what it may say, and that every mistake is named with file, line, field and a way out."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from canal_udp.errors import ConfigError
from canal_udp.lab.impair import Impairment
from canal_udp.lab.model import Lab, Pod, node_name, parse_lab, small_lab

TWO_NODES = "nodes: {a: {pods: 2}, b: {pods: 2}}\n"


def parse(text: str) -> Lab:
    return parse_lab(text, "lab.yaml", "test")


def test_the_shortest_file_has_defaults_for_everything() -> None:
    lab = parse("nodes: {a: {}}")
    assert (lab.name, lab.store, lab.overlay.network) == ("test", "sqlite", ip_network("10.244.0.0/16"))
    network = lab.networks["core"]
    assert (network.mtu_bytes, network.profile, network.joint) == (1500, "wire", "bridge")
    assert (lab.nodes["a"].kind, lab.nodes["a"].encap, lab.nodes["a"].network) == ("canal", "vxlan", "core")


def test_a_whole_file() -> None:
    lab = parse(
        """
        lab: shop
        networks:
          core: {subnets: [10.0.1.0/24, "fd00:1::/64"], mtu: 9000, profile: native}
          edge: {subnets: [10.0.2.0/24], joint: bridge}
        routers:
          r1: {networks: [core, edge]}
        overlay: {network: 10.1.0.0/16, network6: "fd10::/48", encap: udp}
        store: etcd://10.0.1.9:2379
        nodes:
          a:
            network: core
            pods:
              web: {labels: {app: web, tier: front}}
              db: {labels: {app: db}, ip: 10.1.7.9}
          b: {network: edge, kind: kernel-vxlan, pods: [extra]}
          c: {network: edge, encap: vxlan, flags: [--busy-poll-us, "0"], pods: 1}
        faults:
          edge: {loss: 1, delay: 20, jitter: 2.5, seed: 7}
        checks:
          - reach: {from: all, to: app=web}
          - blocked: {from: [db, extra], to: c1, family: 4}
          - throughput: {from: web, to: extra, at_least: 1.5G, seconds: 10, streams: 4}
          - transfer: {from: web, to: extra, size: 1G}
        """
    )
    assert lab.name == "shop" and lab.store == "etcd://10.0.1.9:2379"
    assert lab.pods["web"] == Pod("web", "a", ("app=web", "tier=front"), "auto")
    assert lab.pods["db"].ip == "10.1.7.9"
    assert list(lab.pods) == ["web", "db", "extra", "c1"]
    assert lab.nodes["a"].encap == "udp" and lab.nodes["c"].encap == "vxlan"
    assert lab.nodes["c"].flags == ("--busy-poll-us", "0")
    assert lab.faults == {"edge": Impairment(loss_percent=1, delay_ms=20, jitter_ms=2.5, seed=7)}
    reach, blocked, throughput, transfer = lab.checks
    assert (reach.sources, reach.targets) == (("web", "db", "extra", "c1"), ("web",))
    assert (blocked.sources, blocked.family) == (("db", "extra"), 4)
    assert (throughput.at_least_bits, throughput.seconds, throughput.streams) == (1_500_000_000, 10, 4)
    assert transfer.size_bytes == 1 << 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "lab.yaml: the file is empty", id="empty file"),
        pytest.param("nodes: {a: {}\n", "lab.yaml:2: not YAML: ", id="not YAML"),
        pytest.param("- a\n", "lab.yaml:1: a mapping (key: value) is needed here", id="a list at the top"),
        pytest.param(
            "nodes: {a: {}}\nnetwork: {}\n",
            "lab.yaml:2: network: unknown key 'network'; did you mean 'networks'?",
            id="unknown key at the top",
        ),
        pytest.param(
            "nodes:\n  a:\n    pod: 2\n",
            "lab.yaml:3: nodes.a.pod: unknown key 'pod'; did you mean 'pods'?",
            id="unknown key inside",
        ),
        pytest.param("nodes: {a: {}, a: {}}", "lab.yaml:1: nodes.a: this key is there twice", id="a key twice"),
        pytest.param("lab: x\n", "lab.yaml:1: at least one node is needed", id="no nodes"),
        pytest.param("nodes: {A: {}}", "nodes.A: 'A' is no name: a name is", id="upper case name"),
        pytest.param(f"nodes: {{{'a' * 31}: {{}}}}", "is no name", id="name of 31 characters"),
        pytest.param("nodes: {a: {pods: [a]}}", "the name 'a' belongs to a node already", id="pod named as its node"),
        pytest.param(
            "nodes: {a: {pods: 2}, a1: {}}", "the name 'a1' belongs to a pod already", id="node named as a pod"
        ),
        pytest.param("nodes: {net-x: {}}", "names that start with 'net-'", id="node named as a network's namespace"),
        pytest.param("nodes: {a: {pods: 201}}", "201 is not between 0 and 200", id="too many pods"),
        pytest.param("nodes: {a: {kind: vm}}", "unknown value 'vm'; known: canal,", id="unknown kind"),
        pytest.param(
            "nodes: {a: {kind: kernel-vxlan, flags: [-x]}}", "runs no daemon that could take flags", id="flags"
        ),
        pytest.param("nodes: {a: {encap: vxlam}}", "did you mean 'vxlan'?", id="unknown encapsulation"),
        pytest.param("nodes: {a: {network: cor}}", "unknown network 'cor'; did you mean 'core'?", id="unknown network"),
        pytest.param(
            "networks: {x: {}, y: {}}\nnodes:\n  a: {}\n",
            "lab.yaml:3: nodes.a: there are several networks",
            id="which of two networks",
        ),
        pytest.param(
            "networks: {x: {subnets: [10.0.0.1/24]}}\n" + TWO_NODES, "(10.0.0.1/24 has host bits set)", id="bits"
        ),
        pytest.param("networks: {x: {subnets: [ten]}}\n" + TWO_NODES, "'ten' is not a subnet such as", id="no subnet"),
        pytest.param("networks: {x: {subnets: []}}\n" + TWO_NODES, "one IPv4 subnet, one IPv6", id="no subnets at all"),
        pytest.param(
            "networks: {x: {subnets: [10.0.0.0/24, 10.1.0.0/24]}}\n" + TWO_NODES, "or one of each", id="two IPv4"
        ),
        pytest.param("networks: {x: {subnets: [10.0.0.0/30]}}\n" + TWO_NODES, "too small", id="tiny subnet"),
        pytest.param("networks: {x: {mtu: 500}}\n" + TWO_NODES, "500 is not between 576 and 65535", id="MTU"),
        pytest.param("networks: {x: {mtu: big}}\n" + TWO_NODES, "'big' is not a whole number from 576", id="MTU text"),
        pytest.param(
            "networks: {x: {subnets: [10.0.0.0/16]}, y: {subnets: [10.0.1.0/24]}}\nnodes: {a: {network: x}}",
            "10.0.1.0/24 overlaps 10.0.0.0/16 of network 'x'",
            id="networks overlap",
        ),
        pytest.param(
            "overlay: {network: 192.168.0.0/16}\n" + TWO_NODES, "overlaps the underlay 192.168.1.0/24", id="over"
        ),
        pytest.param(
            "networks: {x: {joint: direct}}\nnodes: {a: {}, b: {}, c: {}}", "exactly two members; it has 3", id="direct"
        ),
        pytest.param(
            "routers: {r: {networks: [core]}}\n" + TWO_NODES, "joins two or more different", id="router to nowhere"
        ),
        pytest.param("store: memory://x\n" + TWO_NODES, "cannot share a store in memory", id="memory store"),
        pytest.param("store: etcd\n" + TWO_NODES, "neither `sqlite` nor a store URL", id="no store"),
        pytest.param(
            "faults: {edge: {loss: 1}}\n" + TWO_NODES, "unknown network 'edge'; known: core", id="faults of nowhere"
        ),
        pytest.param("faults: {core: {los: 1}}\n" + TWO_NODES, "did you mean 'loss'?", id="unknown fault"),
        pytest.param("faults: {core: {loss: 101}}\n" + TWO_NODES, "101 is not between 0 and 100", id="more than all"),
        pytest.param(
            "networks: {core: {joint: direct}}\nfaults: {core: {loss: 1}}\n" + TWO_NODES,
            "has no middle",
            id="no middle",
        ),
        pytest.param("checks: [{reach: {from: all}}]\n" + TWO_NODES, "`to:` is missing", id="check without target"),
        pytest.param("checks:\n  - {reach: {from: a3, to: all}}\n" + TWO_NODES, "lab.yaml:2: ", id="check line"),
        pytest.param(
            "checks: [{reach: {from: a3, to: all}}]\n" + TWO_NODES, "unknown pod 'a3'; known: a1, a2", id="pod"
        ),
        pytest.param("checks: [{reach: {from: app=x, to: all}}]\n" + TWO_NODES, "no pod has the label", id="label"),
        pytest.param("checks: [{reach: {from: all, to: all, family: 5}}]\n" + TWO_NODES, "4 or 6", id="IPv5"),
        pytest.param("checks: [{reach: {}, blocked: {}}]\n" + TWO_NODES, "one check each", id="two checks in one"),
        pytest.param(
            "checks: [{throughput: {from: a1, to: b1, at_least: fast}}]\n" + TWO_NODES,
            "is not a rate such as",
            id="rate",
        ),
        pytest.param(
            "overlay: {network6: 'fd10::/48'}\nnodes: {a: {kind: one-by-one}}",
            "of kind one-by-one needs IPv4",
            id="v4 only",
        ),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("lab.yaml")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("encap", ["vxlan", "udp"])
@pytest.mark.parametrize("profile", ["wire", "native"])
def test_the_file_that_nodes_and_pods_stand_for(encap: str, profile: str) -> None:
    lab = parse(small_lab(3, 2, encap=encap, profile=profile, name="small"))
    assert lab.name == "small" and list(lab.pods) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert {node.encap for node in lab.nodes.values()} == {encap}
    assert lab.networks["core"].profile == profile
    assert lab.overlay.network6 is not None and len(lab.checks) == 1


def test_a_lab_without_pods_has_nothing_to_check() -> None:
    assert parse(small_lab(2, 0)).checks == ()


@pytest.mark.parametrize(("index", "name"), [(0, "a"), (25, "z"), (26, "aa"), (51, "az"), (52, "ba"), (99, "cv")])
def test_node_names_never_end(index: int, name: str) -> None:
    assert node_name(index) == name


def test_a_hundred_nodes_have_different_names() -> None:
    assert len(parse(small_lab(100, 2)).pods) == 200
