"""Promises of the scheduler, against a random world: no engine, no clock, no pixels."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dino_ray.engine.scheduler import CALLS_PER_REPLICA, MERGES_BEHIND, TRIES, Scheduler
from dino_ray.plan.geometry import Grid, make_grid

MERGES = 3
"""At once."""

grids = st.builds(
    lambda w, h, tile, overlap: make_grid(
        w, h, tile=16 * tile, overlap=min(overlap, tile // 2 * 16), multiple=16
    ),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(2, 6),
    st.integers(0, 48),
)


class World:
    """An engine made of dice: calls end in any order, some are lost, replicas die and come back."""

    def __init__(self, grid: Grid, replicas: int, seed: int, faults: float) -> None:
        self.dice = random.Random(seed)
        self.scheduler = Scheduler(grid)
        self.grid = grid
        self.faults = faults
        self.flying: dict[int, list[int]] = {r: [] for r in range(replicas)}
        self.dead: set[int] = set()
        self.merging: list[tuple[int, ...]] = []
        self.pixels: set[int] = set()
        self.merged: list[int] = []
        self.most_alive = 0
        for replica in range(replicas):
            self.scheduler.replica_ready(replica)

    def turn(self) -> None:
        for cells in self.scheduler.next_merges(at_once=MERGES):
            needs = set(self.grid.cell_tiles(cells[0]))
            assert needs <= self.pixels, "a merge was started without its tiles"
            assert all(set(self.grid.cell_tiles(cell)) == needs for cell in cells), "cells of other tiles"
            assert not any(cell in merge for merge in self.merging for cell in cells), "merged twice at once"
            self.merging.append(cells)
            assert len(self.merging) <= MERGES
        for call, replica in self.scheduler.next_tiles():
            assert replica not in self.dead
            self.flying[replica].append(call.tiles[0])
            assert len(self.flying[replica]) <= CALLS_PER_REPLICA
        self.most_alive = max(
            self.most_alive, len(self.pixels | {t for calls in self.flying.values() for t in calls})
        )
        self.something_happens()

    def something_happens(self) -> None:
        busy = [r for r, calls in self.flying.items() if calls]
        can_happen = ["tile"] * bool(busy) + ["merge"] * bool(self.merging) + ["back"] * bool(self.dead)
        match self.dice.choice(can_happen):
            case "tile" if self.dice.random() < self.faults:
                self.kill(self.dice.choice(busy))
            case "tile":
                replica = self.dice.choice(busy)
                tile = self.flying[replica].pop(0)
                if self.scheduler.tile_done(tile, replica):
                    self.pixels.add(tile)
            case "merge":
                cells = self.merging.pop(self.dice.randrange(len(self.merging)))
                lost, tiles_lost = self.dice.random() < self.faults, self.dice.random() < 0.5
                for cell in cells:
                    if lost:
                        self.pixels -= set(self.scheduler.cell_lost(cell, tiles_lost))
                    else:
                        self.merged.append(cell)
                        self.pixels -= set(self.scheduler.cell_done(cell))
            case "back":
                replica = self.dead.pop()
                self.scheduler.replica_ready(replica)

    def kill(self, replica: int) -> None:
        self.dead.add(replica)
        for tile in list(self.flying[replica]):
            self.scheduler.tile_lost(tile, replica, "died", died=True)
        self.scheduler.replica_lost(replica)
        self.flying[replica].clear()

    def run(self) -> None:
        for _ in range(100_000):
            if self.scheduler.done:
                return
            self.turn()
        raise AssertionError(f"never done: {self.scheduler.describe()}")


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_without_faults_every_tile_is_computed_once_and_every_cell_merged_once(
    grid: Grid, replicas: int, seed: int
) -> None:
    world = World(grid, replicas, seed, faults=0.0)
    world.run()
    assert sorted(world.merged) == list(range(grid.n_cells))
    assert world.scheduler.refined == grid.n_tiles
    assert not world.pixels, "tiles were kept that nobody needs"


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_lost_calls_lost_outputs_and_dead_replicas_cost_no_cell(grid: Grid, replicas: int, seed: int) -> None:
    world = World(grid, replicas, seed, faults=0.2)
    world.run()
    assert sorted(world.merged) == list(range(grid.n_cells))


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_the_tiles_alive_at_once_stay_within_the_plans_bound(grid: Grid, replicas: int, seed: int) -> None:
    world = World(grid, replicas, seed, faults=0.0)
    world.run()
    assert world.most_alive <= grid.max_waiting() + CALLS_PER_REPLICA * replicas


@given(grids, st.data())
def test_cells_that_are_done_already_cost_nothing(grid: Grid, data: st.DataObject) -> None:
    done = data.draw(st.sets(st.sampled_from(range(grid.n_cells))))
    scheduler = Scheduler(grid, sorted(done))
    needed = {t for c in set(range(grid.n_cells)) - done for t in grid.cell_tiles(c)}
    assert scheduler.tiles_to_do == len(needed)
    assert scheduler.done == (len(done) == grid.n_cells)


def wide() -> Scheduler:
    return Scheduler(make_grid(640, 64, tile=64, overlap=16, multiple=16))


def test_work_goes_to_the_least_loaded_replica() -> None:
    scheduler = wide()
    for replica in range(3):
        scheduler.replica_ready(replica)
    assert [replica for _, replica in scheduler.next_tiles()] == [0, 1, 2, 0, 1, 2]
    assert scheduler.next_tiles() == []


def test_tiles_do_not_pile_up_when_merges_are_slow() -> None:
    scheduler = Scheduler(make_grid(640, 640, tile=64, overlap=0, multiple=16))
    scheduler.replica_ready(0)
    finished = 0
    while calls := scheduler.next_tiles():
        for call, _ in calls:
            scheduler.tile_done(call.tiles[0], 0)
        finished += len(calls)
    assert finished <= MERGES_BEHIND + CALLS_PER_REPLICA
    for cells in scheduler.next_merges(at_once=99):
        for cell in cells:
            scheduler.cell_done(cell)
    assert scheduler.next_tiles(), "merges have caught up"


def test_a_tile_that_fails_on_every_try_becomes_poison_and_is_asked_for_as_base() -> None:
    scheduler = wide()
    scheduler.replica_ready(0)
    calls = scheduler.next_tiles()
    victim = calls[0][0].tiles[0]
    verdicts = []
    for _ in range(TRIES):
        verdicts.append(scheduler.tile_lost(victim, 0, "it hurts", died=False))
        scheduler.tile_done(calls[1][0].tiles[0], 0)
        for cells in scheduler.next_merges(at_once=99):
            for cell in cells:
                scheduler.cell_done(cell)
        calls = scheduler.next_tiles()
        assert calls[0][0].tiles[0] == victim, "a failed tile goes first again"
    assert verdicts == [False] * (TRIES - 1) + [True]
    assert not calls[0][0].refine
    assert scheduler.poisoned == {victim: "it hurts"}


def test_calls_queued_behind_the_one_that_killed_their_replica_are_not_blamed() -> None:
    scheduler = wide()
    for _ in range(TRIES):
        scheduler.replica_ready(0)
        (at_work, _), (queued, _) = scheduler.next_tiles()
        scheduler.tile_lost(at_work.tiles[0], 0, "died", died=True)
        assert scheduler.next_tiles() == [], "a dead replica was given work"
        scheduler.tile_lost(queued.tiles[0], 0, "died with it", died=True)
    assert set(scheduler.poisoned) == {at_work.tiles[0]}
