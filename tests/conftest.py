"""What every test can count on: root where it is marked, a library built from this tree, and in CI no silent skips."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.netns.bed", "tests.netns.labs", "tests.netns.nodes")  # failures show values

NETNS = Path(__file__).parent / "netns"
IN_CI = bool(os.environ.get("CI"))
KERNEL_REASON = "kernel: "  # the running kernel lacks it, nothing that could have been installed


def pytest_configure() -> None:
    # What a shell starts in the background ignores SIGINT, and so would all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    from canal_udp._abi import ffi, lib, source_is_stale

    state = "STALE: run `make build`" if source_is_stale() else "built from this tree"
    return f"canal: native library {state}, checksums by {ffi.string(lib.canal_isa()).decode()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NETNS in item.path.parents:
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces"))


def _skip_is_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    """CI installs what tests need, so a skip there means that something was not proved."""
    if not (IN_CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(KERNEL_REASON):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not accept: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _skip_is_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skip_is_failure(report)
    return report
