"""deploy/: what it holds is what the program has, and tools that know the formats agree where they are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from canal_udp import daemon_metrics
from canal_udp.__main__ import _parser
from canal_udp.config import OPTIONS
from canal_udp.flannel.flags import read

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
NAMES = set(re.findall(r'"((?:canal|process)_[a-z_]+)"', Path(daemon_metrics.__file__).read_text()))
NAMES |= {f"canal_{verb}_{unit}_total" for verb in ("received", "sent") for unit in ("packets", "bytes")}


def objects() -> list[dict[str, Any]]:
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(
        file.name for file in (DEPLOY / "kubernetes").glob("*.yaml") if file.name != "kustomization.yaml"
    )
    return [one for name in listed for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    found = [one for one in objects() if one["kind"] == kind]
    assert len(found) == 1, kind
    return found[0]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_hardened(unit: Path) -> None:
    text = unit.read_text()
    assert "Type=notify" in text and "DeviceAllow=/dev/net/tun rw" in text
    if not shutil.which("systemd-analyze"):
        return
    shown = run("systemd-analyze", "security", "--offline=yes", "--threshold=35", str(unit))
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", shown)
    assert found is not None and float(found[1]) <= 3.5


def test_the_manifest_is_one_of_each() -> None:
    kinds = sorted(one["kind"] for one in objects())
    assert kinds == ["ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "ServiceAccount"]
    pod = of_kind("DaemonSet")["spec"]["template"]["spec"]
    assert len(pod["containers"]) == len(pod["initContainers"]) == 1
    assert pod["serviceAccountName"] == of_kind("ServiceAccount")["metadata"]["name"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["containers"], *pod["initContainers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_container_says_what_the_program_takes() -> None:
    container = of_kind("DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    options = read(container["args"], {})
    assert options.switch("kube-subnet-mgr") and options.switch("ip-masq") and not options.warnings
    assert all(probe["httpGet"]["port"] == options.number("healthz-port") for probe in probes(container))
    ours = {one["name"] for one in container["env"]} - {"NODE_NAME"}
    assert ours <= {option.variable for option in OPTIONS}
    files = of_kind("ConfigMap")["data"]
    assert json.loads(files["net-conf.json"])["Backend"]["Type"] == "vxlan"
    assert Path(options.text("net-config-path")).name in files


def probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [container["livenessProbe"], container["readinessProbe"]]


def test_the_plug_in_is_installed_first() -> None:
    init = of_kind("DaemonSet")["spec"]["template"]["spec"]["initContainers"][0]
    arguments = _parser(init["command"][1:]).parse_args(init["command"][1:])
    assert arguments.binary_only and str(arguments.bin_dir) in {one["mountPath"] for one in init["volumeMounts"]}


def test_a_node_may_read_and_write_its_own_status_only() -> None:
    for rule in of_kind("ClusterRole")["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "secrets" not in rule["resources"]
        writes = set(rule["verbs"]) - {"get", "list", "watch"}
        assert not writes or (rule["resources"], writes) == (["nodes/status"], {"patch"})


def test_alerts_and_panels_name_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "canal.rules.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((DEPLOY / "grafana" / "canal.json").read_text())["panels"]
    expressions = [rule["expr"] for rule in rules] + [target["expr"] for one in panels for target in one["targets"]]
    for expression in expressions:
        used = set(re.findall(r"\b(?:canal|process)_[a-z_]+", expression))
        assert used <= NAMES, f"{expression}: no {used - NAMES}"
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_promtool_agrees() -> None:
    if not shutil.which("promtool"):
        return
    run("promtool", "check", "rules", str(DEPLOY / "prometheus" / "canal.rules.yaml"))
    run("promtool", "test", "rules", str(DEPLOY / "prometheus" / "canal.rules_test.yaml"))


def test_kustomize_builds_it() -> None:
    if not shutil.which("kubectl"):
        return
    built = list(yaml.safe_load_all(run("kubectl", "kustomize", str(DEPLOY / "kubernetes"))))
    assert len(built) == len(objects())
