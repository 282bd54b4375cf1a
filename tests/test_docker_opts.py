"""mk-docker-opts.sh writes what flannel's writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "deploy" / "mk-docker-opts.sh"
ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
SINGLE = 'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=true"\nDOCKER_OPT_MTU="--mtu=1472"\n'
COMBINED = '" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'


def run(tmp_path: Path, *words: str, env: str = ENV) -> tuple[int, str]:
    (tmp_path / "subnet.env").write_text(env)
    out = tmp_path / "docker.env"
    done = subprocess.run(
        ["sh", str(SCRIPT), "-f", str(tmp_path / "subnet.env"), "-d", str(out), *words],
        capture_output=True,
        check=False,
    )
    return done.returncode, out.read_text() if out.exists() else ""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], SINGLE + "DOCKER_OPTS=" + COMBINED),
        (["-i"], SINGLE),
        (["-c"], "DOCKER_OPTS=" + COMBINED),
        (["-c", "-k", "DOCKER_NETWORK_OPTIONS"], "DOCKER_NETWORK_OPTIONS=" + COMBINED),
        (["-i", "-c"], SINGLE + "DOCKER_OPTS=" + COMBINED),
        (["-c", "-m"], 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'),
    ],
)
def test_options(tmp_path: Path, words: list[str], wanted: str) -> None:
    assert run(tmp_path, *words) == (0, wanted)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["docker.env", "subnet.env"]


def test_docker_masquerades_where_flannel_does_not(tmp_path: Path) -> None:
    assert 'IPMASQ="--ip-masq=false"' in run(tmp_path, env=ENV.replace("=false", "=true"))[1]


@pytest.mark.parametrize(
    ("words", "env"),
    [
        pytest.param([], ENV.replace("=false", "=maybe"), id="neither true nor false"),
        pytest.param(["-x"], ENV, id="an unknown option"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], env: str) -> None:
    assert run(tmp_path, *words, env=env) == (1, "")


def test_nothing_of_the_file_is_run(tmp_path: Path) -> None:
    status, text = run(tmp_path, "-i", env=f"FLANNEL_MTU=$(touch {tmp_path}/run)\n")
    assert status == 0 and "touch" in text and not (tmp_path / "run").exists()
