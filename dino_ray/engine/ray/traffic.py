"""What is under way on the replicas and the workers of a cluster, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    EngineEvent,
    Fault,
    ReplicaReady,
    TileCall,
    TilesDone,
    TilesLost,
    Timings,
)
from dino_ray.engine.ray.faults import Failure, cause_of, understand
from dino_ray.engine.ray.inflight import (
    Beginning,
    Copy,
    Entry,
    Load,
    Merge,
    Preparation,
    Ref,
    Start,
    Store,
    Tiles,
    fetch,
)
from dino_ray.engine.ray.member import Member, Standing
from dino_ray.engine.ray.nodes import Lookout
from dino_ray.engine.ray.pool import Pool
from dino_ray.errors import for_user

RID_S = 60.0
"""A cancelled call ends within a step of the model, which is shorter; a replica still at it is replaced."""

GLANCE_S = 0.5
"""How long one look at the work lasts, so that what befalls the machines is taken in between."""


class Traffic:
    """Calls and merges in flight, and the events that their ends make, in order.

    Parameters
    ----------
    pool
        Whose replicas work; it is told of what befalls them.
    pending
        All that is waited for, in the order of submission; the pool's own entries among it.
    store
        Keeps finished tiles.
    lookout
        Tells of machines that come and go.
    """

    def __init__(self, pool: Pool, pending: dict[Ref, Entry], store: Store, lookout: Lookout) -> None:
        self._pool, self._pending, self._store, self._lookout = pool, pending, store, lookout
        self._calls: dict[int, Ref] = {}  # by the number of the call
        self._unheard: list[EngineEvent] = []

    # ---- what sets out

    def add_tiles(self, member: Member, call: TileCall, pixels: Sequence[Ref], timings: Ref) -> None:
        self._pending[timings] = Tiles(member.number, call, pixels)
        self._calls[call.number] = timings
        member.calls[timings] = None

    def add_beginning(self, member: Member, ref: Ref) -> None:
        self._pending[ref] = Beginning(member.number)

    def add_merge(self, cells: Sequence[int], timings: Ref) -> None:
        self._pending[timings] = Merge(tuple(cells))

    def add_preparation(self, member: Member, guide: Ref, timings: Ref) -> Preparation:
        entry = Preparation(member.number, guide)
        self._pending[timings] = entry
        return entry

    def refuse(self, call: TileCall, replica: int) -> None:
        """A replica that the call was meant for takes none; the caller is about to hear why."""
        self._unheard.append(TilesLost(call, replica, "the replica takes no calls", "cancelled"))

    @property
    def merges(self) -> int:
        return sum(isinstance(entry, Merge) for entry in self._pending.values())

    # ---- what is called back

    def cancel(self, call: TileCall, replica: int) -> None:
        ref = self._calls.get(call.number)
        if ref is None:  # it has ended, and the caller is about to hear of it
            return
        ray.cancel(ref)
        if next(iter(self._pool.members[replica].calls)) is not ref:
            # Ray would drop it only when its turn comes.
            self._forget(ref)
            self._unheard.append(TilesLost(call, replica, "cancelled", "cancelled"))

    def replace(self, replica: int, reason: str) -> None:
        if replica in self._pool.members:
            self._fall(replica, Failure("died", reason, process_lost=True), behind="cancelled")
            self._unheard += self._pool.fill()

    def settle(self) -> None:
        """Forget calls and merges; replicas that are still at a call are not ready before it has ended."""
        for ref, entry in list(self._pending.items()):
            match entry:
                case Tiles(replica) if not entry.forgotten:
                    ray.cancel(ref)
                    self._forget(ref)
                    if self._pool.members[replica].standing is Standing.READY:
                        self._pool.members[replica].become(Standing.SETTLING)
                case Merge():
                    ray.cancel(ref)
                    del self._pending[ref]
                case _:
                    pass
        of_the_image = (TilesDone, TilesLost, CellDone, CellLost)
        self._unheard = [event for event in self._unheard if not isinstance(event, of_the_image)]

    def release(self) -> None:
        """The image is prepared: every replica may load."""
        self._unheard += self._pool.release()

    def fill(self) -> None:
        self._unheard += self._pool.fill()

    # ---- what has ended, and what that means

    def wait(self, timeout: float) -> list[EngineEvent]:
        """The events since the last call; for the first, it waits ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while True:
            self._gather(0.0 if self._unheard else min(GLANCE_S, max(0.0, end - time.monotonic())))
            if self._unheard or time.monotonic() >= end:
                events, self._unheard = self._unheard, []
                return events

    def gather_until(self, condition: Callable[[], bool], patience: float = float("inf")) -> bool:
        """Take in what happens until a condition holds; False if it does not within ``patience`` seconds."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                return False
            self._gather(GLANCE_S)
        return True

    def _gather(self, timeout: float) -> None:
        """Turn what has ended into events, in order; wait for the first, if there is none, for ``timeout``."""
        before = len(self._unheard)
        self._look_around()
        if len(self._unheard) > before:
            timeout = 0.0
        refs = list(self._pending)
        if not refs:
            time.sleep(timeout)
            return
        ended = _ended(refs)
        if not ended and timeout > 0:
            ended, _ = ray.wait(refs, num_returns=1, timeout=timeout, fetch_local=False)
        # In the order of submission: of two calls of a dead replica, the older one was at work.
        for ref, value in zip(ended, fetch(ended), strict=True):
            entry = self._pending.pop(ref, None)
            if entry is not None:  # else it fell with its replica just now
                self._end(ref, entry, value)

    def _look_around(self) -> None:
        """What befell the machines, and replicas that have something to get rid of."""
        nodes = self._lookout.news()
        if nodes is not None:
            changes = self._pool.see(nodes)
            for number in changes.gone:
                self._fall(
                    number, Failure("node", f"its machine, {self._pool.members[number].place}, is gone")
                )
            for number in changes.leaving:
                self._unheard += self._pool.leave(
                    number, f"{self._pool.members[number].place} is about to go"
                )
                self._evacuate(self._pool.members[number].node)
            self._unheard += self._pool.fill()
        for member in self._pool.at(Standing.LEAVING):
            if not self._is_busy(member):
                self._fall(member.number, Failure("node", f"{member.place} is about to go"))
        for member in self._pool.at(Standing.SETTLING):
            if time.monotonic() - member.since > RID_S:
                self.replace(member.number, f"it did not end a cancelled call within {RID_S:.0f} s")

    def _is_busy(self, member: Member) -> bool:
        return bool(member.calls) or any(
            (isinstance(entry, Preparation) and entry.replica == member.number)
            or (isinstance(entry, Copy) and entry.node == member.node)
            for entry in self._pending.values()
        )

    def _evacuate(self, node: str) -> None:
        self._pending.update(self._store.evacuate(node))

    def _end(self, ref: Ref, entry: Entry, value: Any) -> None:
        failure = understand(value) if isinstance(value, Exception) else None
        if failure is not None and failure.process_lost and not isinstance(entry, Merge | Copy):
            self._pending[ref] = entry  # it ends with all else that its replica had
            self._fall(entry.replica, failure)
            self._unheard += self._pool.fill()
            return
        match entry:
            case Start(replica) if failure is None:
                self._unheard += self._pool.started(replica, value)
            case Load(replica):
                self._end_load(replica, value, failure)
            case Beginning(replica) if failure is not None:  # its calls would wait for ever
                self._fall(replica, failure)
            case Preparation():
                blameless = failure is not None and failure.fault != "raised"
                entry.outcome = failure if blameless else cause_of(value) if failure else value
            case Tiles():
                self._end_tiles(ref, entry, value, failure)
            case Merge(cells):
                self._end_merge(cells, value, failure)
            case Copy() if failure is not None:
                entry.failed()
            case _:
                pass

    def _end_load(self, replica: int, value: Any, failure: Failure | None) -> None:
        if failure is None:
            self._unheard += self._pool.loaded(replica, *value)
        else:
            self._fall(replica, failure)
            self._unheard += self._pool.fill()

    def _end_tiles(self, ref: Ref, entry: Tiles, value: Any, failure: Failure | None) -> None:
        member = self._pool.members[entry.replica]
        member.calls.pop(ref, None)
        if not entry.forgotten:
            self._calls.pop(entry.call.number, None)
            if failure is None:
                pixels = self._store.keep(entry.pixels, member.node)
                self._unheard.append(TilesDone(entry.call, entry.replica, pixels, value))
                if member.standing is Standing.LEAVING:
                    self._evacuate(member.node)
            else:
                self._unheard.append(TilesLost(entry.call, entry.replica, failure.reason, failure.fault))
        if member.standing is Standing.SETTLING and not member.calls:
            member.become(Standing.READY)
            self._unheard.append(ReplicaReady(entry.replica, device=member.device))

    def _end_merge(self, cells: Sequence[int], value: Any, failure: Failure | None) -> None:
        if failure is None:
            self._unheard += [CellDone(cell, timings) for cell, timings in zip(cells, value, strict=True)]
        elif failure.fault == "raised":
            raise for_user(cause_of(value)) from value
        else:
            self._unheard += [
                CellLost(cell, failure.reason, failure.inputs_lost, failure.fault) for cell in cells
            ]

    def _forget(self, ref: Ref) -> None:
        entry = cast(Tiles, self._pending[ref])
        entry.forgotten = True
        self._calls.pop(entry.call.number, None)

    def _fall(self, replica: int, failure: Failure, behind: Fault | None = None) -> None:
        """A replica's process is gone, and all that was under way there with it.

        Parameters
        ----------
        behind
            The fault of the calls that waited behind the one at work, if it is another.
        """
        own = [
            (ref, entry) for ref, entry in self._pending.items() if getattr(entry, "replica", None) == replica
        ]
        ended = set(_ended([ref for ref, _ in own]))
        fault: Fault = failure.fault
        for ref, entry in own:
            del self._pending[ref]
            match entry:
                case Preparation():
                    entry.outcome = failure
                case Tiles(_, call) if not entry.forgotten:
                    (value,) = fetch([ref]) if ref in ended else (None,)
                    if isinstance(value, Timings):  # it had just ended
                        self._end_tiles(ref, entry, value, None)
                        continue
                    self._calls.pop(call.number, None)
                    self._unheard.append(TilesLost(call, replica, failure.reason, fault))
                    fault = behind or fault
                case Tiles():
                    fault = behind or fault  # what was at work was this
                case _:
                    pass
        self._unheard += self._pool.fall(replica, failure)


def _ended(refs: Sequence[Ref]) -> list[Ref]:
    """Those whose answer is there, in the same order."""
    return list(ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)[0]) if refs else []
