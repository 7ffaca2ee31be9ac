"""Promises of the scheduler, one by one, told by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

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
)
from dino_ray.engine.scheduler import (
    CALLS_PER_REPLICA,
    MERGE_TRIES,
    MERGES_BEHIND,
    TRIES,
    Cancel,
    Decision,
    Merge,
    Replace,
    Scheduler,
    Start,
    Stop,
)
from dino_ray.engine.scheduler.guard import LOSSES_AT_FIRST, NO_PROGRESS_S, NOBODY_S
from dino_ray.engine.scheduler.merges import MOST_TILES
from dino_ray.engine.scheduler.pace import HUNG_FACTOR, HUNG_LEAST_S, OVERDUE_FACTOR
from dino_ray.engine.scheduler.pressure import CALM_S, INCIDENT_S
from dino_ray.plan.geometry import Grid, make_grid

MERGES = 4


def row(tiles: int) -> Grid:
    return make_grid(48 * tiles + 16, 64, tile=64, overlap=16, multiple=16)


@dataclass
class Desk:
    """Tells a scheduler what happened, and keeps what it decided."""

    scheduler: Scheduler
    now: float = 0.0
    merges: int = MERGES
    at: dict[int, list[TileCall]] = field(default_factory=dict)
    """Calls in flight by replica, oldest first."""
    decisions: list[Decision] = field(default_factory=list)
    """The latest."""
    told: list[Event] = field(default_factory=list)

    def decide(self) -> list[Decision]:
        self.decisions = self.scheduler.decide(self.now, self.merges)
        for decision in self.decisions:
            if isinstance(decision, Start):
                self.at.setdefault(decision.replica, []).append(decision.call)
        return self.decisions

    def of(self, kind: type) -> list[Decision]:
        return [decision for decision in self.decisions if isinstance(decision, kind)]

    def hear(self, *events: EngineEvent) -> list[Event]:
        told = [one for event in events for one in self.scheduler.hear(event, self.now)]
        self.told += told
        return told

    def done(self, replica: int, index: int = 0) -> list[Event]:
        call = self.at[replica].pop(index)
        return self.hear(TilesDone(call, replica, call.tiles))

    def lost(self, replica: int, fault: Fault, index: int = 0) -> list[Event]:
        call = self.at[replica].pop(index)
        return self.hear(TilesLost(call, replica, f"it {fault}", fault))

    def die(self, replica: int, fault: Fault = "died", for_good: bool = False) -> None:
        while self.at.get(replica):
            self.lost(replica, fault)
        self.hear(ReplicaLost(replica, f"it {fault}", for_good, fault))

    def merge_all(self) -> None:
        """Do the merges that were decided, and those that follow from them."""
        while merges := self.of(Merge):
            for merge in merges:
                self.hear(*map(CellDone, merge.cells))  # type: ignore[attr-defined]
            self.decide()

    def round(self, seconds: float = 1.0) -> None:
        """All replicas end the call at work."""
        self.now += seconds
        for replica in [replica for replica, calls in self.at.items() if calls]:
            self.done(replica)
        self.decide()
        self.merge_all()


def desk(grid: Grid, replicas: int, **options: int) -> Desk:
    made = Desk(Scheduler(grid, ready=range(replicas), **options))
    made.decide()
    return made


def tiles(calls: list[TileCall]) -> list[tuple[int, ...]]:
    return [call.tiles for call in calls]


# ---- dispatch


def test_work_goes_to_the_least_loaded_replica() -> None:
    starts = desk(row(10), 3).of(Start)
    assert [start.replica for start in starts] == [0, 1, 2, 0, 1, 2]
    assert [start.call.tiles for start in starts] == [(n,) for n in range(6)]


def test_work_goes_to_the_replica_that_would_end_it_first() -> None:
    world = desk(row(40), 2)
    for _ in range(4):  # replica 1 takes three times as long
        for _ in range(3):
            world.now += 1.0
            world.done(0)
            world.decide()
            world.merge_all()
        world.done(1)
        world.decide()
        world.merge_all()
    world.die(0, "node")
    world.now += 3.0
    world.done(1)
    world.hear(ReplicaReady(0))
    world.decide()
    assert world.of(Start)[0].replica == 0  # type: ignore[attr-defined]


def test_a_group_of_tiles_goes_in_one_call() -> None:
    world = desk(row(10), 1, batch=4)
    assert tiles(world.at[0]) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_tiles_do_not_pile_up_when_merges_are_slow() -> None:
    grid = make_grid(640, 640, tile=64, overlap=0, multiple=16)
    world = desk(grid, 1)
    finished = 0
    world.merges = 1
    while world.at[0]:
        world.done(0)
        finished += 1
        world.decide()
    assert finished <= 1 + MOST_TILES + MERGES_BEHIND + CALLS_PER_REPLICA
    world.merges = 99
    world.decide()
    world.merge_all()
    assert world.at[0], "merges have caught up"


def test_a_replica_that_is_not_ready_gets_nothing() -> None:
    world = desk(row(10), 0)
    world.hear(ReplicaPlaced(7, "node"))
    assert world.decide() == []
    world.hear(ReplicaLoading(7))
    assert world.decide() == []
    world.hear(ReplicaReady(7))
    world.decide()
    assert tiles(world.at[7]) == [(0,), (1,)]
    world.die(7)
    assert world.decide() == []


def test_a_replica_that_leaves_ends_what_it_has_and_its_waiting_call_goes_elsewhere() -> None:
    world = desk(row(10), 2)
    _, waiting = world.at[0]
    world.hear(ReplicaLeaving(0, "spot notice"))
    world.done(1)
    world.decide()
    assert Cancel(waiting, 0) in world.decisions
    assert waiting.tiles in tiles(world.at[1])
    assert [start.replica for start in world.of(Start)] == [1]
    assert isinstance(world.lost(0, "cancelled", index=1)[0], TilesSpare)
    assert isinstance(world.done(0)[0], TilesDone)
    assert not [start for start in world.decide() if isinstance(start, Start) and start.replica == 0]


def test_a_replica_gone_for_good_never_comes_back() -> None:
    world = desk(row(10), 1)
    world.die(0, "node", for_good=True)
    world.hear(ReplicaReady(0))
    assert world.decide() == []


# ---- lost calls


def test_a_lost_call_goes_first_again_and_to_another_replica() -> None:
    world = desk(row(10), 2)
    world.die(0)
    world.done(1)
    world.decide()
    assert tiles(world.at[1])[-1] == (0,)
    world.hear(ReplicaReady(0))
    world.decide()
    assert tiles(world.at[0]) == [(2,), (4,)]


@pytest.mark.parametrize("fault", ["node", "memory", "cancelled"])
def test_nobody_is_blamed_for(fault: Fault) -> None:
    world = desk(row(4), 1)
    for _ in range(3 * TRIES):
        world.die(0, fault)
        world.hear(ReplicaReady(0))
        world.decide()
    assert not [event for event in world.told if isinstance(event, TilePoisoned)]
    assert tiles(world.at[0])[0] == (0,)


def test_a_tile_that_raises_on_every_try_is_poison_and_its_base_is_asked_for() -> None:
    world = desk(row(10), 1)
    for n in range(TRIES):
        assert world.at[0][0].tiles == (0,)
        assert any(isinstance(event, TilePoisoned) for event in world.lost(0, "raised")) == (n == TRIES - 1)
        world.done(0)
        world.decide()
        world.merge_all()
    assert world.at[0][0] == TileCall(world.at[0][0].number, (0,), refine=False)
    assert world.scheduler.summary().poisoned == {0: "it raised"}


def test_a_tile_whose_base_fails_too_ends_the_job() -> None:
    world = desk(row(10), 1)
    for _ in range(2 * TRIES):
        world.lost(0, "raised")
        if world.at[0]:
            world.done(0)
        world.decide()
        if not world.of(Stop):
            world.merge_all()
    assert world.decisions == [Stop("tile 0 fails even without the model: it raised")]


def test_a_model_that_raises_on_every_tile_ends_the_job() -> None:
    world = desk(row(10), 2)
    for _ in range(100):
        for replica in (0, 1):
            if world.at[replica]:
                world.lost(replica, "raised")
        if any(isinstance(decision, Stop) for decision in world.decide()):
            break
    assert world.decisions == [Stop("the model fails on every tile it was given: it raised")]


def test_a_tile_that_raised_is_not_tried_again_where_it_did_while_there_are_others() -> None:
    world = desk(row(10), 3)
    tried = []
    for _ in range(2):
        replica = next(r for r, calls in world.at.items() if (0,) in tiles(calls))
        while world.at[replica][0].tiles != (0,):
            world.done(replica)
        tried.append(replica)
        world.lost(replica, "raised")
        world.decide()
        world.round()
    assert len(set(tried)) == 2


def test_of_a_group_that_raises_only_the_guilty_tile_is_given_up() -> None:
    world = desk(row(4), 1, batch=4)
    for _ in range(TRIES):
        assert tiles(world.at[0]) == [(0, 1, 2, 3)], "the same tiles together, while they may pass"
        world.lost(0, "raised")
        world.decide()
    for _ in range(20):
        if not world.at[0]:
            break
        call = world.at[0][0]
        assert len(call.tiles) == 1
        if call.tiles == (2,) and call.refine:
            world.lost(0, "raised")
        else:
            world.done(0)
        world.decide()
        world.merge_all()
    assert world.scheduler.done
    assert set(world.scheduler.summary().poisoned) == {2}


def test_a_tile_that_kills_is_poison_after_three_deaths_in_a_large_healthy_job() -> None:
    world = desk(make_grid(976, 976, tile=64, overlap=16, multiple=16), 4)
    for _ in range(10):
        world.round()
    (killer,) = world.at[0][0].tiles
    for deaths in range(1, 4):
        replica = next(r for r, calls in world.at.items() if calls and calls[0].tiles == (killer,))
        world.die(replica)
        world.hear(ReplicaReady(replica))
        assert (killer in world.scheduler.summary().poisoned) == (deaths == 3)
        world.decide()
        while not any(calls and calls[0].tiles == (killer,) for calls in world.at.values()):
            world.round()


def test_calls_that_waited_behind_the_one_that_killed_are_not_blamed() -> None:
    world = desk(make_grid(976, 976, tile=64, overlap=16, multiple=16), 1)
    for _ in range(40):
        world.round()
    killer, victim = (call.tiles[0] for call in world.at[0])
    for _ in range(100):
        if world.at[0][0].tiles == (killer,):
            waiting = world.at[0][1:]
            del world.at[0][1:]
            world.lost(0, "died")
            assert world.decide() == [], "a dead replica was given work"
            world.hear(*(TilesLost(call, 0, "died with it", "died") for call in waiting))
            world.hear(ReplicaLost(0, "died"), ReplicaReady(0))
            world.decide()
        else:
            world.round()
        if world.scheduler.summary().poisoned:
            break
    assert set(world.scheduler.summary().poisoned) == {killer}
    died = [event.call.tiles for event in world.told if isinstance(event, TilesLost)]
    assert died.count((killer,)) == 3
    assert died.count((victim,)) == 2, "it waited there the first two times"


def test_a_replica_that_raises_whatever_it_is_given_starts_anew_and_poisons_nothing() -> None:
    world = desk(row(40), 2)
    for _ in range(3):
        world.round()
    for _ in range(10):
        if not world.at[0]:
            break
        world.lost(0, "raised")
        if any(isinstance(decision, Replace) for decision in world.decide()):
            break
        world.now += 1.0
        world.done(1)
        world.decide()
        world.merge_all()
    assert [decision.replica for decision in world.of(Replace)] == [0]
    assert not world.scheduler.summary().poisoned


# ---- lost outputs


def merges_of(world: Desk) -> list[Merge]:
    return [decision for decision in world.decisions if isinstance(decision, Merge)]


def test_a_merge_that_lost_its_tiles_has_them_made_again() -> None:
    world = desk(row(3), 1)
    world.done(0)
    world.done(0)
    world.decide()
    cell = next(c for merge in merges_of(world) for c in merge.cells if row(3).cell_tiles(c) == (0, 1))
    before = world.scheduler.summary().retries
    world.hear(CellLost(cell, "gone", tiles_lost=True))
    world.decide()
    assert sorted(tiles(world.at[0])) == [(0,), (2,)]
    world.round()
    assert sorted(tiles(world.at[0])) == [(1,), (2,)] or (1,) in tiles(world.at[0])
    assert world.scheduler.summary().retries == before + 2


def test_only_what_was_made_on_a_machine_that_is_gone_is_made_again() -> None:
    world = desk(row(6), 2)
    world.done(0)
    world.done(1)
    world.decide()
    cell = next(c for merge in merges_of(world) for c in merge.cells if row(6).cell_tiles(c) == (0, 1))
    world.die(1, "node", for_good=True)
    world.hear(CellLost(cell, "gone", tiles_lost=True, fault="node"))
    world.hear(*(CellDone(c) for merge in merges_of(world) for c in merge.cells if c != cell))
    world.decide()
    for _ in range(10):
        world.round()
    assert world.scheduler.done
    made = [event.call.tiles for event in world.told if isinstance(event, TilesDone)]
    assert sorted(made) == [(0,), (1,), (1,), (2,), (3,), (4,), (5,)]


def test_a_merge_whose_worker_died_is_tried_again_alone_and_not_for_ever() -> None:
    world = desk(row(2), 1)
    world.done(0)
    world.decide()
    (cell, *others) = merges_of(world)[0].cells
    world.hear(*map(CellDone, others))
    for _ in range(MERGE_TRIES - 1):
        world.hear(CellLost(cell, "it crashed", tiles_lost=False))
        world.decide()
        assert [merge.cells for merge in merges_of(world)] == [(cell,)]
    world.hear(CellLost(cell, "it crashed", tiles_lost=False))
    assert world.decide() == [Stop(f"cell {cell} can't be merged: it crashed")]


# ---- late calls


def warm(world: Desk, rounds: int = 3) -> Desk:
    """All replicas are known to take a second."""
    for _ in range(rounds):
        world.round()
    return world


def test_an_overdue_call_is_copied_and_what_waits_behind_it_goes_elsewhere() -> None:
    world = warm(desk(row(40), 3))
    late, waiting = world.at[0]
    for _ in range(int(OVERDUE_FACTOR)):
        world.now += 1.0
        for replica in (1, 2):
            world.done(replica)
        world.decide()
        world.merge_all()
    elsewhere = {replica for replica in (1, 2) for calls in [world.at[replica]] if late.tiles in tiles(calls)}
    assert len(elsewhere) == 1
    assert world.scheduler.summary().copies == 1
    assert any(waiting.tiles in tiles(world.at[replica]) for replica in (1, 2)) or waiting.tiles in [
        event.call.tiles for event in world.told if isinstance(event, TilesDone)
    ]


def test_the_first_answer_wins_and_the_other_call_is_cancelled() -> None:
    world = warm(desk(row(40), 2))
    late = world.at[0][0]
    for _ in range(10):
        world.now += 1.0
        world.done(1)
        world.decide()
        if world.of(Cancel) and any(cancel.call == late for cancel in world.of(Cancel)):
            break
        world.merge_all()
    assert any(cancel.call == late for cancel in world.of(Cancel))
    world.at[0] = [late]
    assert world.done(0) == [TilesSpare(late, 0)]
    assert world.scheduler.summary().retries == 0


def test_an_idle_replica_takes_over_what_waits_for_a_busy_one() -> None:
    world = warm(desk(row(40), 1))
    while len(world.at[0]) == 2 and world.scheduler._work.queued:
        world.round()
    waiting = world.at[0][1]
    world.hear(ReplicaReady(1))
    world.decide()
    assert world.decisions == [Cancel(waiting, 0), Start(world.at[1][0], 1)]
    assert world.at[1][0].tiles == waiting.tiles


def test_a_hung_replica_is_replaced_when_it_is_known_how_long_calls_take() -> None:
    world = warm(desk(row(400), 2))
    world.now += max(HUNG_FACTOR, HUNG_LEAST_S) / 2
    assert world.at[0]
    world.done(1)
    world.decide()
    assert not world.of(Replace)
    world.merge_all()
    world.now += max(HUNG_FACTOR, HUNG_LEAST_S) / 2
    world.done(1)
    world.decide()
    assert [decision.replica for decision in world.of(Replace)] == [0]


# ---- memory


def in_flight_at_most(world: Desk) -> int:
    return max(map(len, world.at.values()))


def test_short_memory_lowers_what_is_in_flight_and_calm_restores_it() -> None:
    world = warm(desk(row(400), 3))
    world.die(0, "memory")
    world.round()
    world.round()
    assert in_flight_at_most(world) == 1
    for _ in range(int(CALM_S)):
        world.round()
    assert in_flight_at_most(world) == CALLS_PER_REPLICA


def test_each_shortage_halves_the_merges_and_what_comes_with_it_does_not() -> None:
    world = desk(make_grid(640, 640, tile=64, overlap=0, multiple=16), 8)
    world.merges = 0
    for replica in range(8):
        world.done(replica)
        world.done(replica)
    waiting = world.scheduler._merges.waiting
    assert waiting == 16
    world.hear(ReplicaLost(0, "too large", fault="memory"), ReplicaLost(1, "too large", fault="memory"))
    world.merges = 8
    world.decide()
    assert len(world.of(Merge)) == 4
    lost = merges_of(world)[0].cells
    world.now += INCIDENT_S + 1
    world.hear(*(CellLost(cell, "too large", tiles_lost=False, fault="memory") for cell in lost))
    world.decide()
    assert len(world.of(Merge)) == 0
    assert world.scheduler._merges.in_flight == 3


# ---- the end of patience


def test_a_job_in_which_nothing_happens_ends_and_says_who_waits_for_what() -> None:
    world = desk(row(10), 1)
    world.hear(ReplicaPlaced(1, "node"), ReplicaLost(2, "no such weights", for_good=True))
    world.now = NO_PROGRESS_S + 1
    (stop,) = world.decide()
    assert stop == Stop(
        "nothing got done for 1801 s: 124 cells left, 8 calls queued (first: tile 2); in flight: replica 0: tile 0 for "
        "1801 s, tile 1 waiting; replicas: 1 busy, 1 pending, 1 dead (replica 2: no such weights); merging: nothing",
        stuck=True,
    )


def test_a_job_that_all_machines_left_waits_for_others_and_not_for_ever() -> None:
    world = desk(row(10), 1)
    world.die(0, "node", for_good=True)
    world.decide()
    world.now = NOBODY_S - 1
    assert world.decide() == []
    world.hear(ReplicaPlaced(1, "node"))
    world.now += NOBODY_S
    assert world.decide() == []
    world.hear(ReplicaLost(1, "gone again", for_good=True))
    world.now += NOBODY_S + 1
    (stop,) = world.decide()
    assert isinstance(stop, Stop)
    assert stop.reason.startswith("no replica was ready or loading for ")
    assert "gone again" in stop.reason


@pytest.mark.parametrize("fault", ["died", "node", "memory"])
def test_a_job_whose_every_call_is_lost_ends(fault: Fault) -> None:
    world = desk(row(1000), 4)
    for _ in range(LOSSES_AT_FIRST):
        for replica in range(4):
            if world.at.get(replica):
                world.die(replica, fault)
                world.hear(ReplicaReady(replica))
        world.decide()
        if world.of(Stop):
            break
    (stop,) = world.decisions
    assert isinstance(stop, Stop)
    assert f"the last one as it {fault}: " in stop.reason
