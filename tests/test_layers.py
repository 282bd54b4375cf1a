"""Who may import and include whom. The two tables are the architecture; a new module needs a row here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "canal_udp"
NATIVE = ROOT / "native"

# ---- Python: a module imports from layers above it in this list, and from its own -----------------------------------

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "net", "netfilter", "metrics", "logs"),
    ("config", "readings", "control", "cni", "encap", "endpoints", "underlay", "policy", "identity", "flannel"),
    ("node", "actions", "agenda", "rounds"),
    ("_abi", "encap.fib", "recorded", "tunnel"),
    (
        *("policy.compiled", "policy.class_table", "policy.class_rows", "policy.elsewhere", "policy.addresses"),
        *("policy.program", "policy.compile", "policy.explain"),
    ),
    ("dataplane", "explain", "faults", "policy_tables"),
    (
        *("api", "daemon", "daemon_api", "daemon_cni", "daemon_endpoints", "daemon_explain"),
        *("daemon_flows", "daemon_hands"),
        *("daemon_health", "daemon_listener", "daemon_metrics", "daemon_objects", "daemon_paths", "daemon_policy"),
        *("daemon_saved", "daemon_store", "lab", "bench"),
    ),
    ("flannel.run", "flannel.lease_only", "flannel.takeover", "flannel.survey"),
    ("cli", "__main__"),
)

# Third-party packages (and sqlite3): the only modules that may import them. "." is a whole sub-package.
DOORS: dict[str, tuple[str, ...]] = {
    "cffi": (),  # native/build_ffi.py
    "pytun": ("tunnel.device",),
    "uvloop": ("daemon", "flannel.run"),
    "pyroute2": (),  # tests compare with it
    "sqlite3": ("control.sqlite",),
    "yaml": ("lab.", "policy.reader"),
    "scapy": ("lab.",),
    "numpy": ("_abi", "encap.fib", "dataplane", "faults", "policy_tables", "explain", "policy."),
    "matplotlib": ("bench.picture",),
    "msgspec": ("",),
    "grpclib": ("control.etcd_client", "control.etcd"),
    "google": ("control.etcd_messages",),  # protobuf
}
PURE = (
    *(
        "errors",
        "net",
        "netfilter",
        "config",
        "readings",
        "endpoints",
        "underlay",
        "node",
        "actions",
        "agenda",
        "rounds",
    ),
    *("control.lease", "control.peers", "control.network", "control.path_mtu", "encap.", "policy."),
    *("control.objects", "control.publication", "control.saved"),
    *("cni.conflist", "cni.naming", "cni.request", "cni.result", "cni.spec", "flannel.flags", "flannel.plan"),
)
EFFECTS = {"asyncio", "socket", "subprocess", "threading", "time", "os", "fcntl", "signal", "select"}

CALLERS = ("dataplane", "faults", "policy_tables")  # of the compiled library

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def layer(module: str) -> int:
    """Row of the longest name in LAYERS that is the module or a package it lies in."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        name = ".".join(parts[:size])
        for i, names in enumerate(LAYERS):
            if name in names:
                return i
    raise AssertionError(f"canal_udp/{module.replace('.', '/')}.py is in no layer: add it to LAYERS")


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or ((place.endswith(".") or not place) and module.startswith(place)) for place in places)


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Absolute names of what a file imports; `from canal_udp.x import y` gives x, and x.y where that is a module."""
    tree = ast.parse(path.read_text(), str(path))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in typing_only and top_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            known = [name for name in inner if name.removeprefix("canal_udp.") in MODULES]
            yield from known or [module]


def own(name: str) -> str | None:
    """`canal_udp.x.y` -> `x.y`; None for other packages and the bare package (its version)."""
    return name.removeprefix("canal_udp.") if name.startswith("canal_udp.") else None


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for name in imports(MODULES[module]):
        target = own(name)
        if target is not None:
            assert layer(target) <= layer(module), f"{module} imports {target}, which lies in a higher layer"


@pytest.mark.parametrize("module", MODULES)
def test_one_door_per_library(module: str) -> None:
    for name in imports(MODULES[module]):
        top = name.partition(".")[0]
        if top in DOORS:
            assert within(module, DOORS[top]), f"{module} imports {top}; only {DOORS[top] or 'native/build_ffi.py'} may"
        elif top != "canal_udp":
            assert top in sys.stdlib_module_names, f"{module} imports {top}, which has no door"


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, PURE)])
def test_pure_modules_do_no_io(module: str) -> None:
    """Decisions see neither clock nor network: time and facts come in as arguments."""
    found = {name.partition(".")[0] for name in imports(MODULES[module])} & EFFECTS
    assert not found, f"{module} imports {sorted(found)}"


def test_no_import_cycles() -> None:
    graph = {m: {t for n in imports(p, top_only=True) if (t := own(n)) in MODULES} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way, module))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_only_the_data_plane_calls_the_library(module: str) -> None:
    """Constants are free, calls are not."""
    called = {
        node.attr
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lib"
    }
    functions = {name for name in called if name.startswith("canal_")}
    allowed = {"canal_abi_version", "canal_boundary_hash", "canal_source_hash"} if module == "_abi" else set()
    assert module in CALLERS or functions <= allowed, f"{module} calls {sorted(functions - allowed)}"


def test_command_line_starts_without_the_heavy_libraries() -> None:
    """`canal status` asks a socket: whatever costs more than a few milliseconds is imported by those who need it."""
    heavy = {"numpy", "uvloop", "scapy", "pyroute2", "yaml", "grpclib", "google"}
    code = f"import sys, canal_udp.__main__; print(*sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---- C: a stage includes the packet, the sums and itself ------------------------------------------------------------

EVERYBODY = {"canal.h", "packet.h", "csum.h"}
# The files of one stage share their first word (encap.c, encap_vxlan.c) and may include each other's headers.
STAGES = {
    *("vnet", "parse", "fragment", "conntrack", "fib", "classify", "policy"),
    *("csum", "gso", "coalesce", "encap", "ecn", "icmp", "reset", "notes"),
}
# The snapshot is data that several stages read; batch functions of the boundary parse what the worker has parsed.
MORE: dict[str, set[str]] = {
    "classify.h": {"fib.h"},
    "policy.c": {"fib.h"},
    "tables.h": {"fib.h"},
    "tables.c": {"fib.h"},
    "epoch.h": {"tables.h"},
    "policy.h": {"classify.h"},
    "policy_build.c": {"classify_build.h"},
    "encap.c": {"tables.h", "parse.h"},
    "coalesce.c": {"parse.h", "gso.h"},
    "gso.c": {"parse.h"},
}
# They know the order of the stages or move the packets between them.
MOVERS = {
    "pipeline",
    "judge",
    "verdict",
    "emit",
    "tx",
    "io",
    "spin",
    "stall",
    "worker",
    "process",
    "datapath",
    "counters",
}

C_FILES = sorted([*NATIVE.glob("*.c"), *NATIVE.glob("*.h")])


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_stages_do_not_know_each_other(path: Path) -> None:
    if path.stem in MOVERS:
        return
    stage = path.stem.partition("_")[0]
    assert stage in STAGES | {"canal", "packet", "tables", "epoch"}, f"{path.name}: is it a stage or a mover?"
    included = set(re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), flags=re.MULTILINE))
    allowed = EVERYBODY | {header.name for header in NATIVE.glob(f"{stage}*.h")} | MORE.get(path.name, set())
    assert included <= allowed, f"{path.name} includes {sorted(included - allowed)}"


@pytest.mark.parametrize("path", [path for path in C_FILES if path.suffix == ".c"], ids=lambda path: path.name)
def test_no_global_state_in_c(path: Path) -> None:
    """A second data path in the same process must be possible: nothing mutable at file scope."""
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    for line in code.splitlines():
        if re.match(r"(static |_Atomic |_Thread_local )*[a-z_][\w ]*[ *]\w+(\[[^]]*\])*\s*(=.*)?;", line):
            assert line.startswith(("typedef", "extern")) or " const " in f" {line}" or "static const" in line, (
                f"{path.name}: {line.strip()}"
            )


def test_c_neither_prints_nor_calls_python() -> None:
    for path in C_FILES:
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        for name in re.findall(r"\b(f?printf|puts|perror|abort|exit|Py\w+)\s*\(", code):
            raise AssertionError(f"{path.name} calls {name}")


def test_every_test_file_has_a_name_of_its_own() -> None:
    """pytest imports them by their bare names."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
