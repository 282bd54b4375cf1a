"""/metrics: the text format, and that every number of the data plane is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from canal_udp.daemon_health import Answer, PageServer, health_pages
from canal_udp.daemon_metrics import metrics
from canal_udp.metrics import Metric, counter, exposition, gauge
from tests.test_api import Bench

SAMPLE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?\d+(\.\d+)?(e[+-]\d+)?')


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(tmp_path, f"{request.node.name}-{tmp_path.name}")


def test_the_format() -> None:
    drops = Metric("d_total", "counter", "Two\nlines \\.", (({"reason": 'a"b\\'}, 2**63), ({"reason": "c"}, 0)))
    assert exposition([drops, gauge("up", "Is it?", True), counter("s_total", "S.", 0.25)]) == (
        "# HELP d_total Two\\nlines \\\\.\n# TYPE d_total counter\n"
        'd_total{reason="a\\"b\\\\"} 9223372036854775808\nd_total{reason="c"} 0\n'
        "# HELP up Is it?\n# TYPE up gauge\nup 1\n"
        "# HELP s_total S.\n# TYPE s_total counter\ns_total 0.25\n"
    )


def test_what_a_daemon_shows(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a")
        found = list(metrics(bench.daemon))
        text = exposition(found)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(SAMPLE.fullmatch(line) for line in lines), text
        names = [metric.name for metric in found]
        assert len(set(names)) == len(names)
        assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in found)
        for line in ("canal_ready 1", "canal_endpoints 1", "canal_leases 1", "canal_store_up 1", "canal_peers 0"):
            assert line in lines
        assert {line for line in lines if line.startswith("canal_drops_total")} == {
            f'canal_drops_total{{reason="{reason}"}} 0' for reason in bench.plane.drops()
        }
        pages.append(text)

    pages: list[str] = []
    bench.run(work)
    if promtool := shutil.which("promtool"):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=pages[0], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_underlay_that_is_gone_is_a_problem(bench: Bench) -> None:
    async def work() -> None:
        bench.host.broken["underlay"] = "there is no default route"
        bench.host.monitors[None].ring()
        await bench.until(lambda: bench.daemon.state() == "degraded")
        lines = exposition(metrics(bench.daemon)).splitlines()
        assert "canal_ready 0" in lines and "canal_problems 1" in lines
        answer = health_pages(bench.daemon.checks)["/readyz"]("verbose")
        assert not answer.ok
        assert "[-]underlay failed: there is no default route\n[+]worker ok\nreadyz check failed" in answer.text
        assert "[+]lease ok\n" in answer.text

    bench.run(work, stop=False)


@pytest.mark.parametrize(
    ("request_line", "status", "text"),
    [
        (b"GET /x HTTP/1.1", "200 OK", "y=1\n"),
        (b"GET /x?y=1 HTTP/1.0", "200 OK", "y=1\n"),
        (b"HEAD /x HTTP/1.1", "200 OK", ""),
        (b"GET /bad HTTP/1.1", "503 Service Unavailable", "no\n"),
        (b"POST /x HTTP/1.1", "405 Method Not Allowed", "only GET\n"),
        (b"GET /etc/passwd HTTP/1.1", "404 Not Found", "there are /x, /bad\n"),
        (b"GET \xff HTTP/1.1", "404 Not Found", "there are /x, /bad\n"),
        (b"nonsense", "400 Bad Request", "not a request\n"),
        (b"", "400 Bad Request", "not a request\n"),
    ],
)
def test_requests(request_line: bytes, status: str, text: str) -> None:
    pages = {"/x": lambda query: Answer(True, "y=1", "text/x"), "/bad": lambda query: Answer(False, "no")}
    head, _, body = PageServer(pages)._answer(request_line).decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\n") and body == text
    if request_line.startswith(b"GET /x"):
        assert "\r\nContent-Type: text/x\r\nContent-Length: 4\r\n" in head
