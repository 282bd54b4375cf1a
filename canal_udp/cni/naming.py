"""Which endpoint a request is about, and what a new one is called. Pure.

Structure    network, container id, interface ─► one endpoint (Endpoint.attachment, .ifname)
             Kubernetes' namespace and pod ─► ns/pod; any other container ─► default/<container id>
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set

from canal_udp.cni.request import Call, Wishes
from canal_udp.cni.spec import Code
from canal_udp.endpoints import Endpoint, check_name
from canal_udp.errors import CniError, RequestError

_ID_MAX = 200  # of a container id within a name


def attachment(call: Call) -> str:
    """Return what is remembered of the container; neither part has a slash."""
    return f"{call.network}/{call.container_id}"


def endpoint(call: Call, wishes: Wishes, identity: str) -> Endpoint:
    """Return the endpoint that an ADD asks for, with the addresses that it asks for.

    identity   of the namespace
    Raises     CniError.
    """
    name = "/".join(wishes.pod or ("default", _short(call.container_id)))
    try:
        check_name(name)
    except RequestError as error:
        raise CniError(Code.ENVIRONMENT, f"CNI_ARGS: {error}") from error
    return Endpoint(name, call.netns, identity, call.ifname, wishes.ips, wishes.labels, attachment=attachment(call))


def attached(call: Call, endpoints: Iterable[Endpoint]) -> Endpoint | None:
    """Return the endpoint that an earlier ADD made."""
    ours = attachment(call)
    return next((one for one in endpoints if (one.attachment, one.ifname) == (ours, call.ifname)), None)


def refuse_duplicate(call: Call, endpoints: Iterable[Endpoint]) -> None:
    """Refuse an ADD of what is attached.

    Raises     CniError.
    """
    found = attached(call, endpoints)
    if found is not None:
        ips = ", ".join(map(str, found.ips))
        raise CniError(
            Code.DUPLICATE, f"{ips} has been allocated to {call.container_id}, duplicate allocation is not allowed"
        )


def unknown(endpoints: Iterable[Endpoint], valid: Set[tuple[str, str, str]]) -> list[Endpoint]:
    """Return the endpoints of runtimes that are not in what they know: network, container id, interface."""
    return [one for one in endpoints if one.attachment and (*one.attachment.split("/"), one.ifname) not in valid]


def _short(container_id: str) -> str:
    if len(container_id) <= _ID_MAX:
        return container_id
    return f"{container_id[:_ID_MAX]}.{hashlib.sha256(container_id.encode('ascii')).hexdigest()[:16]}"
