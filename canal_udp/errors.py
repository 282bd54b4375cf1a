"""The one exception tree; C error codes become exceptions in `raise_for` of `faults`, and only there."""

from __future__ import annotations


class CanalError(Exception):
    """Anything that Canal reports to a person: the message says what is wrong, where, and what to do."""

    exit_status = 1


class UsageError(CanalError):
    """The command line or a file is wrong, not the system."""

    exit_status = 2


class ConfigError(UsageError):
    """A value in a file, flag, environment variable or stored config is wrong."""

    def __init__(self, problem: str, *, source: str = "", line: int | None = None, field: str = "") -> None:
        where = ":".join(part for part in (source, str(line) if line is not None else "") if part)
        super().__init__(": ".join(part for part in (where, field, problem) if part))
        self.problem, self.source, self.line, self.field = problem, source, line, field


class AbiError(CanalError, ImportError):
    """The compiled library does not fit the Python code."""


class TableError(CanalError):
    """A table cannot be built; the snapshot before it stays in force."""


class DataplaneError(CanalError):
    """The data plane refused an operation."""


class StoreError(CanalError):
    """The store answered with an error."""


class StoreUnavailable(StoreError):
    """The store cannot be reached now; forwarding goes on."""


class StoreConflict(StoreError):
    """Someone else changed the key first."""


class LeaseError(CanalError):
    """This node cannot get or keep a subnet."""


class LeaseLost(LeaseError):
    """The lease is gone or belongs to another node."""


class AddressError(CanalError):
    """A pod cannot have this address, or none is left."""


class AddressTaken(AddressError):
    """The address is another's now, or all are; later that may be different."""


class DeviceError(CanalError):
    """A TUN device, socket, namespace or link cannot be had."""


class DaemonUnreachable(CanalError):
    """No daemon answers at this socket."""


class RequestError(CanalError):
    """The daemon refused a request."""


class CniError(CanalError):
    """What a container runtime is told: code, message and details of the CNI specification."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.details = code, details


class LabError(CanalError):
    """A lab cannot be built, or a check in it failed."""


class BenchError(CanalError):
    """A measurement cannot be made, or what it measured was not correct."""
