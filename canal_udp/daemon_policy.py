"""Policies in force: what is known of the cluster, compiled in a thread of its own, handed to the node.

Structure  changes of objects, our pods, our addresses ─► wake ─► Engine (thread) ─► PolicyKnown ─► the node publishes
Invariants A burst of changes is one publication. While a compilation runs, what comes is kept for the next one.
           When it fails the last good state stays in force, with the reason; the next attempt starts from all objects.
Threads    the loop's; the engine is only used inside the thread, one call at a time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from canal_udp.actions import PolicyKnown
from canal_udp.control.bell import rung
from canal_udp.control.objects import split_name
from canal_udp.logs import event
from canal_udp.net import Address
from canal_udp.node import Node
from canal_udp.policy.cluster import Changes
from canal_udp.policy.compile import Engine
from canal_udp.policy.compiled import Compiled

LOG = logging.getLogger("canal.policy")
RETRY_S = 5.0
LOOK_S = 3600.0  # with nothing to do before someone says so
LASTING = 1000  # objects at once: a cluster that is there to stay
SETTLED_S = 2.0  # an attach waits so long for the policies of its pod


class PolicyKeeper:
    """See the module's docstring.

    everything  all objects of the cluster, as changes from nothing
    prepare     has the data plane build what it can beforehand, and refuse what it cannot hold; thread: any
    """

    def __init__(
        self,
        node: Node,
        everything: Callable[[], Changes],
        prepare: Callable[[Compiled], None],
        apply: Callable[[PolicyKnown], Awaitable[None]],
    ) -> None:
        self.compiled: Compiled | None = None
        self.problem = ""
        self._node, self._everything, self._prepare, self._apply = node, everything, prepare, apply
        self._thread = ThreadPoolExecutor(1, "canal-policy")
        self._engine = Engine()
        self._pending: list[Changes] = []
        self._local: dict[str, tuple[str, int]] = {}  # endpoint -> "namespace/pod", id
        self._own: frozenset[Address] = frozenset()
        self._known = False
        self._wake, self._settled = asyncio.Event(), asyncio.Event()

    def take(self, changes: Changes) -> None:
        """Objects of the cluster are different now."""
        self._known = True
        self._pending.append(changes)
        self._stir()

    def notice(self) -> None:
        """Look whether the node has other pods or addresses now."""
        local = {name: ("/".join(split_name(name)), one.id) for name, one in self._node.endpoints.items()}
        if (local, self._node.own_addresses) != (self._local, self._own):
            self._local, self._own = local, self._node.own_addresses
            self._stir()

    def _stir(self) -> None:
        if self._known:
            self._settled.clear()
            self._wake.set()

    async def settled(self) -> None:
        """Wait until all that is known is in force, within reason."""
        if self._known:
            await rung(self._settled, SETTLED_S)

    async def run(self) -> None:
        """Compile for ever."""
        retry = False
        while True:
            await rung(self._wake, RETRY_S if retry else LOOK_S)
            self._wake.clear()
            if self._known:
                retry = not await self._compile()

    async def _compile(self) -> bool:
        changes, self._pending = self._pending, []
        local, own = self._local, self._own
        loop = asyncio.get_running_loop()
        try:
            names = {name: key for name, (key, _) in local.items()}
            compiled = await loop.run_in_executor(self._thread, lambda: self._work(changes, names, own))
        except Exception as error:  # whatever it is: what is in force stays so
            self._failed(f"{type(error).__name__}: {error}")
            return False
        if self.problem:
            event(LOG, "info", "policy.recovered")
            self.problem = ""
        self.compiled = compiled
        await self._apply(PolicyKnown(compiled, frozenset(number for _, number in local.values())))
        if not self._wake.is_set():
            self._settled.set()
        return True

    def _work(self, changes: list[Changes], local: dict[str, str], own: frozenset[Address]) -> Compiled:
        """thread: the engine's."""
        for some in changes:
            self._engine.apply(some)
        self._engine.set_own(own)
        compiled = self._engine.compile(local)
        self._prepare(compiled)
        if sum(map(len, changes)) > LASTING:
            gc.freeze()  # a collection that looks at all of a large cluster stops everybody for a second
        return compiled

    def _failed(self, reason: str) -> None:
        self.problem = f"policies are those of before: {reason}"
        event(LOG, "error", "policy.not_compiled", reason=reason)
        self._engine, self._pending = Engine(book=self._engine.book), [self._everything()]  # numbers keep their meaning

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False)
