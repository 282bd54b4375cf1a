"""The compiled library as Python sees it: `ffi`, `lib`, and dtypes and names derived from canal.h.

Raises   AbiError at import when the library was built from another canal.h than the one beside it.
Limits   nothing here calls a function of the data plane; `canal_udp.dataplane` does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from canal_udp.errors import AbiError

ABI_VERSION = 1
REBUILD = "rebuild it: make build, or pip install -e ."

CData = Any  # cffi's objects carry no static type


class FFI(Protocol):
    """The part of cffi's interface that is used."""

    NULL: CData

    def new(self, cdecl: str, init: object = ...) -> CData: ...
    def from_buffer(self, cdecl: str, buffer: Any, require_writable: bool = ...) -> CData: ...
    def string(self, cdata: CData) -> bytes: ...
    def typeof(self, cdecl: object) -> Any: ...
    def sizeof(self, cdecl: object) -> int: ...
    def gc(self, cdata: CData, destructor: Any) -> CData: ...


class Lib(Protocol):
    """canal.h's functions; a test compares names and argument counts. Every other name is one of its constants."""

    def __getattr__(self, name: str) -> int: ...

    canal_boundary_hash: CData
    canal_source_hash: CData

    def canal_abi_version(self) -> int: ...
    def canal_strerror(self, err: int) -> CData: ...
    def canal_isa(self) -> CData: ...

    def canal_tables_build(
        self, node: CData, vteps: CData, n_vteps: int, fib: CData, n_fib: int, generation: int, out: CData, fault: CData
    ) -> int: ...
    def canal_tables_free(self, tables: CData) -> None: ...
    def canal_fib_lookup(self, tables: CData, addrs: CData, n: int, targets: CData) -> int: ...

    def canal_dp_new(self, config: CData, out: CData, fault: CData) -> int: ...
    def canal_dp_free(self, dp: CData) -> int: ...
    def canal_dp_publish(self, dp: CData, tables: CData) -> int: ...
    def canal_dp_reclaim(self, dp: CData) -> int: ...
    def canal_port_add(self, dp: CData, config: CData, fault: CData) -> int: ...
    def canal_port_del(self, dp: CData, port: int) -> int: ...
    def canal_counters_read(self, dp: CData, counters: CData, drops: CData) -> int: ...
    def canal_errors_read(self, dp: CData, errors: CData) -> int: ...
    def canal_ports_read(self, dp: CData, stats: CData, n: int) -> int: ...
    def canal_flows_read(self, dp: CData, cursor: CData, flows: CData, n: int) -> int: ...
    def canal_events_fd(self, dp: CData) -> int: ...
    def canal_events_read(self, dp: CData, events: CData, n: int) -> int: ...
    def canal_status_read(self, dp: CData, status: CData) -> int: ...
    def canal_hits_read(self, dp: CData, first: int, hits: CData, n: int) -> int: ...
    def canal_notes_read(self, dp: CData, since_ms: int, notes: CData, n: int, now_ms: CData) -> int: ...
    def canal_worker_run(self, dp: CData, worker: int, fault: CData) -> int: ...
    def canal_worker_stop(self, dp: CData) -> int: ...

    def canal_parse(self, data: CData, spans: CData, n: int, flows: CData) -> int: ...
    def canal_vnet_check(self, hdr: CData, flow: CData, vnet: CData) -> int: ...
    def canal_segment(
        self, packet: CData, size: int, vnet: CData, out: CData, out_size: int, spans: CData, n_spans: int
    ) -> int: ...
    def canal_coalesce(
        self,
        data: CData,
        spans: CData,
        n: int,
        flags: int,
        out: CData,
        out_size: int,
        out_spans: CData,
        out_vnets: CData,
        n_out: int,
    ) -> int: ...
    def canal_encap_batch(
        self,
        tables: CData,
        data: CData,
        spans: CData,
        which: CData,
        n: int,
        out: CData,
        out_size: int,
        out_spans: CData,
    ) -> int: ...
    def canal_decap_batch(
        self, tables: CData, encap: int, data: CData, spans: CData, n: int, inner: CData, drops: CData
    ) -> int: ...
    def canal_process(
        self,
        dp: CData,
        data: CData,
        frames: CData,
        n: int,
        now_ms: int,
        out: CData,
        out_size: int,
        out_frames: CData,
        n_out: int,
    ) -> int: ...

    def canal_ct_new(self, max_entries: int, share: int, seed: CData, out: CData) -> int: ...
    def canal_ct_free(self, ct: CData) -> None: ...
    def canal_ct_find(self, ct: CData, flows: CData, n: int, results: CData) -> int: ...
    def canal_ct_track(self, ct: CData, flows: CData, owner: CData, n: int, now_ms: int, results: CData) -> int: ...
    def canal_ct_sweep(self, ct: CData, now_ms: int, n: int) -> int: ...
    def canal_ct_count(self, ct: CData) -> int: ...
    def canal_ct_read(self, ct: CData, now_ms: int, cursor: CData, flows: CData, n: int) -> int: ...

    def canal_classifier_build(self, rules: CData, n: int, out: CData, fault: CData) -> int: ...
    def canal_classifier_free(self, classifier: CData) -> None: ...
    def canal_classify(self, classifier: CData, flows: CData, n: int, rows: CData) -> int: ...

    def canal_classes_build(
        self,
        base: CData,
        addresses: CData,
        n: int,
        prefixes: CData,
        n_prefixes: int,
        flags: CData,
        n_classes: int,
        out: CData,
        fault: CData,
    ) -> int: ...
    def canal_classes_release(self, classes: CData) -> None: ...
    def canal_classes_find(self, classes: CData, addrs: CData, n: int, found: CData) -> int: ...
    def canal_program_build(
        self,
        rows: CData,
        n_rows: int,
        vectors: CData,
        n_vectors: int,
        src: CData,
        dst: CData,
        n_classes: int,
        out: CData,
        fault: CData,
    ) -> int: ...
    def canal_program_reclass(
        self, program: CData, src: CData, dst: CData, n_classes: int, out: CData, fault: CData
    ) -> int: ...
    def canal_program_release(self, program: CData) -> None: ...
    def canal_policy_build(
        self,
        classes: CData,
        programs: CData,
        n_programs: int,
        endpoints: CData,
        n_endpoints: int,
        to_host: int,
        out: CData,
        fault: CData,
    ) -> int: ...
    def canal_policy_hold(self, policy: CData) -> None: ...
    def canal_policy_release(self, policy: CData) -> None: ...
    def canal_tables_set_policy(self, tables: CData, policy: CData) -> int: ...
    def canal_policy_judge(self, policy: CData, flows: CData, ways: CData, n: int, found: CData) -> int: ...


def _load() -> ModuleType:
    """The extension module; CANAL_LIBRARY names another build of it (sanitizers)."""
    name, other = "canal_udp._native", os.environ.get("CANAL_LIBRARY")
    try:
        if other is None:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, other)
        if spec is None or spec.loader is None:
            raise AbiError(f"{other}: not an extension module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
        return module
    except ModuleNotFoundError as error:
        raise AbiError(f"the compiled library is missing; {REBUILD}") from error
    except ImportError as error:
        raise AbiError(f"the compiled library does not load ({error}); {REBUILD}") from error


def tree() -> dict[str, Any] | None:
    """What native/build_ffi.py of this source tree defines; None where only the package is installed."""
    path = Path(__file__).resolve().parent.parent / "native" / "build_ffi.py"
    return runpy.run_path(str(path)) if path.exists() else None


def stale(compiled: str, present: str | None) -> bool:
    return present is not None and compiled != present


_module = _load()
ffi: FFI = _module.ffi
lib: Lib = _module.lib

_tree = tree()
if stale(ffi.string(lib.canal_boundary_hash).decode(), _tree["boundary_hash"]() if _tree else None):
    raise AbiError(f"native/canal.h changed since {_module.__file__} was built; {REBUILD}")
if lib.canal_abi_version() != ABI_VERSION:
    raise AbiError(f"{_module.__file__} has ABI {lib.canal_abi_version()}, Python expects {ABI_VERSION}; {REBUILD}")


def library_path() -> Path:
    return Path(str(_module.__file__))


def source_is_stale() -> bool:
    """Whether some C file changed since the library was built; harmless to load, but not what one is looking at."""
    return stale(ffi.string(lib.canal_source_hash).decode(), _tree["source_hash"]() if _tree else None)


def _scalar(ctype: Any) -> str:
    return f"{'i' if ctype.cname.startswith('int') else 'u'}{ffi.sizeof(ctype)}"


@cache
def dtype_of(struct: str) -> np.dtype[np.void]:
    """The numpy dtype of a struct of canal.h, same names, offsets and size: `dtype_of("struct canal_vtep")`."""
    formats: list[Any] = []
    fields = ffi.typeof(struct).fields
    for _, field in fields:
        if field.type.kind == "array":
            formats.append((_scalar(field.type.item), (field.type.length,)))
        else:
            formats.append(_scalar(field.type))
    return np.dtype(
        {
            "names": [name for name, _ in fields],
            "formats": formats,
            "offsets": [field.offset for _, field in fields],
            "itemsize": ffi.sizeof(struct),
        }
    )


@cache
def enum_names(enum: str, prefix: str) -> tuple[str, ...]:
    """Names by value, lower case, without the prefix and the closing count: `("enum canal_drop", "CANAL_DROP_")`."""
    closing = enum.removeprefix("enum ").upper() + "S"
    members = {value: name for name, value in ffi.typeof(enum).relements.items() if name != closing}
    return tuple(members[value].removeprefix(prefix).lower() for value in sorted(members))
