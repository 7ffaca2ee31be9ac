"""An engine made of dice, in virtual time: replicas that are slow, die, hang, come, leave, and lose what they made."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    EngineEvent,
    Event,
    Fault,
    ReplicaLeaving,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesSpare,
    TilesStarted,
    Timings,
)
from dino_ray.engine.scheduler import (
    CALLS_PER_REPLICA,
    Cancel,
    Decision,
    Merge,
    Replace,
    Scheduler,
    Start,
    Stop,
)
from dino_ray.fidelity.record import Action, TileFidelity
from dino_ray.plan.geometry import Grid, make_grid

MERGES = 4
"""At once."""

LOAD_S = 5.0
LONGEST_S = 1e6


class Stopped(Exception):
    """The scheduler gave up."""


@dataclass
class Habits:
    """What befalls a world. Probabilities are per call or merge."""

    tile_s: float = 1.0
    jitter: float = 0.05
    """Of a call's time, as a fraction."""
    first_s: float = 0.0
    """On top of the first call after loading."""
    merge_s: float = 0.01
    dies: float = 0.0
    raises: float = 0.0
    node: float = 0.0
    """The machine goes with the call, and what it made."""
    memory: float = 0.0
    hangs: float = 0.0
    merge_lost: float = 0.0
    leaves: float = 0.0
    joins: float = 0.0
    killers: frozenset[int] = frozenset()
    """Tiles that end whatever process refines them."""
    raisers: frozenset[int] = frozenset()
    flat: frozenset[int] = frozenset()
    """Tiles for which the model is not asked: they take a hundredth of the time."""
    retries: frozenset[int] = frozenset()
    """Tiles that the model is asked for three times."""
    obeys: bool = True
    """Cancelled calls end soon; else as if they had not been."""


@dataclass(eq=False)
class Actor:
    slowness: float = 1.0
    state: str = "ready"
    calls: deque[tuple[TileCall, list[bool]]] = field(default_factory=deque)
    """With each, whether it was cancelled."""
    life: int = 0
    warm: bool = False
    hung: bool = False


class World:
    """Runs a scheduler against virtual replicas until it is done.

    Parameters
    ----------
    slowness
        Of each replica: 4 takes four times as long.
    """

    def __init__(
        self, grid: Grid, slowness: list[float], seed: int = 0, habits: Habits | None = None, batch: int = 1,
        cells_done: tuple[int, ...] = (), tile_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.grid, self.habits, self.dice = grid, habits or Habits(), random.Random(seed)
        self.actors = dict(enumerate(Actor(slow) for slow in slowness))
        self.batch = batch
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = 0
        self.scheduler = Scheduler(
            grid, batch=batch, cells_done=cells_done, ready=self.actors, tile_bytes=tile_bytes, now=0.0
        )
        self.merged: Counter[int] = Counter(cells_done)
        self.merging: list[tuple[int, ...]] = []
        self.told: list[Event] = []
        self.replaced: list[int] = []
        self.most_alive = 0
        self.started: Counter[int] = Counter()  # calls by tile
        self.lost_machines: set[tuple[int, int]] = set()
        """Lives of replicas, as (replica, life), whose machines are gone."""
        self.open_calls: dict[int, int] = {}

    # ---- the run

    def run(self) -> float:
        """Returns the time it took."""
        while not self.scheduler.done:
            assert self.now < LONGEST_S, f"never done: {self.scheduler.describe(self.now)}"
            for decision in self.scheduler.decide(self.now, MERGES):
                self.perform(decision)
            self.most_alive = max(self.most_alive, self.scheduler._work.alive)
            wake = self.now + self.scheduler.patience(self.now)
            if self.events and self.events[0][0] <= wake:
                self.now = self.events[0][0]
                while self.events and self.events[0][0] <= self.now:
                    heapq.heappop(self.events)[2]()
            else:
                self.now = wake
        return self.now

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (self.now + delay, self.sequence, action))

    def say(self, event: EngineEvent) -> None:
        for told in self.scheduler.hear(event, self.now):
            self.told.append(told)
            if isinstance(told, TilesDone | TilesLost | TilesSpare):
                assert self.open_calls.pop(told.call.number) == told.replica, "a call ended that was not open"

    def heard(self, kind: type) -> list[Event]:
        return [event for event in self.told if isinstance(event, kind)]

    # ---- decisions

    def perform(self, decision: Decision) -> None:
        match decision:
            case Start(call, replica, copy):
                self.start(call, replica, copy)
            case Cancel(call, replica):
                self.cancel(call, replica)
            case Replace(replica):
                self.replaced.append(replica)
                self.die(replica, "died", "was replaced")
            case Merge(cells, tiles):
                self.merge(cells, dict(tiles))
            case Stop(reason):
                raise Stopped(reason)

    def start(self, call: TileCall, replica: int, copy: bool) -> None:
        actor = self.actors[replica]
        assert actor.state == "ready", f"a call for a replica that is {actor.state}"
        actor.calls.append((call, [False]))
        assert len(actor.calls) <= CALLS_PER_REPLICA
        self.started.update(call.tiles)
        self.open_calls[call.number] = replica
        self.told.append(TilesStarted(call, replica, copy))
        here = [
            n
            for n, a in self.actors.items()
            for c, cancelled in a.calls
            if c.tiles == call.tiles and not cancelled[0]
        ]
        assert len(here) == len(set(here)) <= 3, "copies on one replica, or too many"
        if len(actor.calls) == 1:
            self.work(replica)

    def cancel(self, call: TileCall, replica: int) -> None:
        actor = self.actors[replica]
        for waiting, cancelled in actor.calls:
            if waiting.number == call.number:
                cancelled[0] = True
                if self.habits.obeys and not actor.hung and waiting is actor.calls[0][0]:
                    self.at(0.1, self.while_alive(replica, lambda: self.end(replica, call, "cancelled")))

    def merge(self, cells: tuple[int, ...], pixels: dict[int, object]) -> None:
        needs = {tile for cell in cells for tile in self.grid.cell_tiles(cell)}
        assert needs == set(pixels), "not the tiles that it needs"
        assert all(pixels[tile][0] == tile for tile in needs), "another tile's pixels"  # type: ignore[index]
        assert not any(cell in other for other in self.merging for cell in cells), "merged twice at once"
        self.merging.append(cells)
        assert len(self.merging) <= MERGES

        def finish() -> None:
            self.merging.remove(cells)
            lost = {tile for tile in needs if pixels[tile][1] in self.lost_machines}  # type: ignore[index]
            fails = self.dice.random() < self.habits.merge_lost
            for cell in cells:
                if fails or lost:
                    self.say(
                        CellLost(
                            cell,
                            "lost",
                            bool(lost & set(self.grid.cell_tiles(cell))),
                            "node" if lost else "died",
                        )
                    )
                else:
                    self.merged[cell] += 1
                    self.say(CellDone(cell))

        self.at(self.habits.merge_s, finish)

    # ---- replicas

    def while_alive(self, replica: int, action: Callable[[], None]) -> Callable[[], None]:
        life = self.actors[replica].life
        return lambda: action() if self.actors[replica].life == life else None

    def work(self, replica: int) -> None:
        """Begin the first call of a replica's queue."""
        actor, dice, habits = self.actors[replica], self.dice, self.habits
        if not actor.calls:
            return
        call, cancelled = actor.calls[0]
        tiles = sum(
            0.01 if tile in habits.flat else 3 if tile in habits.retries else 1 for tile in call.tiles
        )
        seconds = habits.tile_s * tiles * actor.slowness * (1 + habits.jitter * (2 * dice.random() - 1))
        seconds += 0 if actor.warm else habits.first_s
        if cancelled[0] and habits.obeys:
            self.at(0.01, self.while_alive(replica, lambda: self.end(replica, call, "cancelled")))
            return
        chance = dice.random()

        def happens(probability: float) -> bool:
            nonlocal chance
            chance -= probability
            return chance < 0

        if call.refine and habits.killers.intersection(call.tiles):
            self.at(
                seconds / 2,
                self.while_alive(replica, lambda: self.die(replica, "died", "killed by its tile")),
            )
        elif call.refine and habits.raisers.intersection(call.tiles):
            self.at(seconds / 2, self.while_alive(replica, lambda: self.end(replica, call, "raised")))
        elif happens(habits.hangs) and self.heard(TilesDone):  # before, nobody could know that it hangs
            self.hang(replica)
        elif happens(habits.dies):
            self.at(
                seconds * dice.random(),
                self.while_alive(replica, lambda: self.die(replica, "died", "killed")),
            )
        elif happens(habits.memory):
            self.at(
                seconds * dice.random(),
                self.while_alive(replica, lambda: self.die(replica, "memory", "too large")),
            )
        elif happens(habits.node):
            self.at(
                seconds * dice.random(),
                self.while_alive(replica, lambda: self.die(replica, "node", "machine gone")),
            )
        elif happens(habits.raises):
            self.at(seconds / 2, self.while_alive(replica, lambda: self.end(replica, call, "raised")))
        elif happens(habits.leaves):
            self.at(seconds / 2, self.while_alive(replica, lambda: self.leave(replica)))
            self.at(seconds, self.while_alive(replica, lambda: self.end(replica, call, None)))
        else:
            self.at(seconds, self.while_alive(replica, lambda: self.end(replica, call, None)))
        if dice.random() < habits.joins:
            self.join(dice.choice([1.0, 1.0, 2.0]))

    def end(self, replica: int, call: TileCall, fault: Fault | None) -> None:
        """The call at work ends."""
        actor = self.actors[replica]
        if not actor.calls or actor.calls[0][0].number != call.number:
            return  # it ended before, and this was its cancellation
        actor.calls.popleft()
        actor.warm = actor.warm or not self.habits.flat.issuperset(call.tiles)
        if fault is None:
            pixels = tuple((tile, (replica, actor.life)) for tile in call.tiles)
            self.say(TilesDone(call, replica, pixels, Timings(fidelity=tuple(map(self.record, call.tiles)))))
        else:
            self.say(TilesLost(call, replica, f"it {fault}", fault))
        self.work(replica)

    def record(self, tile: int) -> TileFidelity:
        action: Action = "skipped" if tile in self.habits.flat else "accepted"
        return TileFidelity(tile, action, retries=2 if tile in self.habits.retries else 0)

    def die(self, replica: int, fault: Fault, reason: str) -> None:
        actor = self.actors[replica]
        if actor.state == "dead":
            return
        if fault == "node":
            self.lost_machines.add((replica, actor.life))
        actor.life += 1
        actor.warm = actor.hung = False
        calls = [call for call, _ in actor.calls]
        actor.calls.clear()
        for_good = fault == "node" or actor.state == "leaving"
        events: list[EngineEvent] = [TilesLost(call, replica, reason, fault) for call in calls]
        events.append(ReplicaLost(replica, reason, for_good, fault))
        self.dice.shuffle(events)
        actor.state = "dead" if for_good else "loading"
        for event in events:
            self.say(event)
        if for_good:
            self.join()
        else:
            self.load(replica)

    def hang(self, replica: int) -> None:
        """Whatever the replica has does not end."""
        self.actors[replica].life += 1
        self.actors[replica].hung = True

    def load(self, replica: int) -> None:
        self.say(ReplicaPlaced(replica, f"node-{replica}"))
        self.say(ReplicaLoading(replica))

        def ready() -> None:
            self.actors[replica].state = "ready"
            self.say(ReplicaReady(replica))

        self.at(LOAD_S, self.while_alive(replica, ready))

    def leave(self, replica: int) -> None:
        self.actors[replica].state = "leaving"
        self.say(ReplicaLeaving(replica, "notice"))
        self.at(3.0, self.while_alive(replica, lambda: self.die(replica, "node", "left")))

    def join(self, slowness: float = 1.0) -> None:
        replica = len(self.actors)
        self.actors[replica] = Actor(slowness, "loading")
        self.load(replica)


def square(tiles: int, columns: int = 0) -> Grid:
    """Rows and columns of 64-pixel tiles that overlap by 16."""
    columns = columns or round(tiles**0.5)
    rows = -(-tiles // columns)
    return make_grid(48 * columns + 16, 48 * rows + 16, tile=64, overlap=16, multiple=16)


def poisoned(world: World) -> set[int]:
    return {event.tile for event in world.told if isinstance(event, TilePoisoned)}
