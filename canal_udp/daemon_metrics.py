"""What /metrics shows: the daemon's numbers at the moment of the question.

Labels      only what is bounded by the program: port kinds, drop reasons. Neither peers nor pods are labels.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from canal_udp import __version__
from canal_udp.metrics import Metric, counter, gauge

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon

_PORTS = ("pod", "host", "underlay")
_PLAIN = {
    "originated": ("canal_icmp_errors_total", "ICMP errors of our own."),
    "icmp_limited": ("canal_icmp_errors_limited_total", "ICMP errors not sent because of the rate limit."),
    "rx_superpackets": ("canal_superpackets_received_total", "Reads that brought more than one packet."),
    "tx_superpackets": ("canal_superpackets_sent_total", "Writes that carried more than one packet."),
    "fragments_created": ("canal_fragments_created_total", "IPv4 fragments made of packets that were too big."),
    "gso_fallback": ("canal_gso_fallbacks_total", "Sockets that lost UDP_SEGMENT at run time."),
    "policy_misses": ("canal_policy_judged_packets_total", "Packets that had to be judged, not found in conntrack."),
    "syscalls": ("canal_worker_syscalls_total", "System calls of the worker."),
    "wakeups": ("canal_worker_wakeups_total", "Waits of the worker that slept."),
}


def metrics(daemon: Daemon) -> Iterator[Metric]:
    """Everything."""
    yield gauge("canal_build_info", "Which version this is.", 1, version=__version__)
    yield from _node(daemon)
    yield from _packets(daemon)
    yield from _policy(daemon)
    yield from _plane(daemon)
    yield from _process()


def _node(daemon: Daemon) -> Iterator[Metric]:
    node = daemon.node
    problems = [topic for topic, problem in daemon.checks() if problem]
    yield gauge("canal_ready", "1 while all is as it should be, as /readyz says.", not problems)
    yield gauge("canal_problems", "Things that are not as they should be; /readyz?verbose names them.", len(problems))
    yield gauge("canal_store_up", "1 while the store answers.", "store" not in problems)
    leases = node.leases
    yield gauge("canal_store_revision", "Revision of the leases as last seen.", leases.revision if leases else 0)
    yield gauge("canal_leases", "Leases of the network, ours included.", len(leases.leases) if leases else 0)
    yield gauge("canal_leases_unreadable", "Leases that cannot be understood.", len(leases.bad) if leases else 0)
    yield gauge("canal_leases_unused", "Leases that conflict with older ones.", len(node.peers.conflicts))
    yield gauge("canal_lease_held", "1 while this node has a subnet.", node.lease is not None)
    if node.lease is not None and node.lease.expires_at is not None:
        text = "When this node's lease ends if it is not renewed."
        yield gauge("canal_lease_expiry_timestamp_seconds", text, node.lease.expires_at)
    yield gauge("canal_peers", "Other nodes that packets go to.", len(node.peers.peers))
    yield gauge("canal_peers_left_out", "Peers whose route leads into our own device.", len(node.recursive))
    yield gauge("canal_endpoints", "Pods of this node.", len(node.endpoints))
    yield gauge("canal_mtu_bytes", "MTU of our devices.", node.mtu or 0)


def _packets(daemon: Daemon) -> Iterator[Metric]:
    counters = daemon.dataplane.counters()
    for word, unit in (("", "packets"), ("_bytes", "bytes")):
        for key, verb in (("rx", "received"), ("tx", "sent")):
            samples = tuple(({"port": port}, counters.get(f"{key}_{port}{word}", 0)) for port in _PORTS)
            name = f"canal_{verb}_{unit}_total"
            yield Metric(name, "counter", f"{unit.capitalize()} {verb}, by kind of port; packets of the wire.", samples)
    samples = tuple(({"reason": reason}, count) for reason, count in daemon.dataplane.drops().items())
    yield Metric("canal_drops_total", "counter", "Packets dropped, each for one reason.", samples)
    for key, (name, text) in _PLAIN.items():
        if key in counters:
            yield counter(name, text, counters[key])


def _policy(daemon: Daemon) -> Iterator[Metric]:
    policy, objects = daemon.policy, daemon.objects
    samples = tuple(({"kind": kind}, count) for kind, count in objects.cluster.counts().items())
    yield Metric("canal_objects", "gauge", "Policies, pods and what else the cluster knows.", samples)
    yield gauge("canal_objects_in_sync", "1 while the cluster's objects are followed.", objects.in_sync)
    rules = policy.compiled.rules if policy.compiled else {}
    yield gauge(
        "canal_policy_rules", "Rules in force on this node.", len(policy.compiled.in_force) if policy.compiled else 0
    )
    yield gauge(
        "canal_policy_in_force", "1 once policies have been compiled for this node.", policy.compiled is not None
    )
    hits = Counter[tuple[str, str]]()
    for number, count in enumerate(daemon.dataplane.hits(max(rules, default=-1) + 1)):
        if number in rules:
            hits[rules[number].direction, rules[number].action] += count
    found = tuple(({"direction": direction, "action": action}, count) for (direction, action), count in hits.items())
    text = "Flows that rules let begin, packets that they denied; canal policy list --hits has each rule."
    yield Metric("canal_policy_hits_total", "counter", text, found)
    text = "1 while the policies cannot be compiled, and older ones stay in force."
    yield gauge("canal_policy_failed", text, bool(policy.problem))


def _plane(daemon: Daemon) -> Iterator[Metric]:
    plane = daemon.dataplane.status()
    yield gauge("canal_worker_running", "1 while the worker runs.", daemon.dataplane.running)
    yield gauge("canal_conntrack_entries", "Flows that are tracked.", plane.ct_entries)
    yield gauge("canal_conntrack_entries_max", "Flows that can be tracked.", plane.ct_max)
    yield gauge("canal_fragments_tracked", "Packets whose later fragments are awaited.", plane.frag_entries)
    yield gauge("canal_tables_generation", "Generation of the tables in use.", plane.generation)
    yield counter("canal_tables_published_total", "Tables that were put into use.", plane.published)
    yield gauge("canal_tables_retired", "Old tables that the worker may still see.", plane.retired)
    yield gauge("canal_queued_packets", "Packets that the worker holds now.", plane.queued)


def _process() -> Iterator[Metric]:
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    yield counter("process_cpu_seconds_total", "Processor time, all threads.", time.process_time())
    yield gauge("process_resident_memory_bytes", "Memory in use.", resident_pages * os.sysconf("SC_PAGE_SIZE"))
    yield gauge("process_start_time_seconds", "When the daemon started.", round(started, 2))
    yield gauge("process_open_fds", "Open descriptors.", len(os.listdir("/proc/self/fd")))
