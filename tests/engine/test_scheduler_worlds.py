"""Promises of the scheduler that hold whatever happens: random worlds, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Habits, Stopped, World, poisoned, square

from dino_ray.engine.protocol import TilesDone, TilesLost, TilesStarted
from dino_ray.engine.scheduler import CALLS_PER_REPLICA
from dino_ray.engine.scheduler.blame import WITNESSES
from dino_ray.engine.scheduler.calls import FULL_MERGES
from dino_ray.engine.scheduler.merges import MOST_BYTES
from dino_ray.plan.geometry import Grid, make_grid

grids = st.builds(
    lambda w, h, tile, overlap, wrap: make_grid(
        w // 16 * 16 if wrap else w,
        h,
        tile=16 * tile,
        overlap=min(overlap, tile // 2 * 16),
        multiple=16,
        wrap=wrap,
    ),
    st.integers(32, 300),
    st.integers(1, 300),
    st.integers(2, 6),
    st.integers(0, 48),
    st.booleans(),
)
pools = st.lists(st.sampled_from([1.0, 1.0, 1.0, 2.0, 4.0]), min_size=1, max_size=6)
seeds = st.integers(0, 2**32)
batches = st.integers(1, 4)


def every_cell_once(world: World) -> bool:
    return world.merged == dict.fromkeys(range(world.grid.n_cells), 1)


@given(grids, pools, seeds, batches)
def test_without_faults_every_tile_is_started_and_every_cell_merged_once(
    grid: Grid, pool: list[float], seed: int, batch: int
) -> None:
    world = World(grid, pool, seed, batch=batch)
    world.run()
    assert every_cell_once(world)
    assert set(world.started) == set(range(grid.n_tiles))
    summary = world.scheduler.summary()
    assert (summary.retries, summary.poisoned) == (0, {})
    assert len(world.heard(TilesDone)) == -(-grid.n_tiles // batch)
    assert summary.tile_calls == len(world.heard(TilesStarted))
    assert summary.copies == sum(event.copy for event in world.heard(TilesStarted))


@given(grids, pools, seeds, batches)
def test_whatever_is_lost_every_cell_is_merged_once(
    grid: Grid, pool: list[float], seed: int, batch: int
) -> None:
    habits = Habits(
        dies=0.04, raises=0.03, node=0.03, memory=0.03, hangs=0.02, merge_lost=0.05, leaves=0.03, joins=0.05
    )
    world = World(grid, pool, seed, habits, batch)
    world.run()
    assert every_cell_once(world)
    calls = {event.call.number for event in world.told if isinstance(event, TilesDone)}
    assert len(calls) == len(world.heard(TilesDone)), "one call was told done twice"


@given(grids, pools, seeds, batches)
def test_cancelled_calls_that_go_on_as_if_nothing_had_been_said_do_no_harm(
    grid: Grid, pool: list[float], seed: int, batch: int
) -> None:
    world = World(grid, pool, seed, Habits(obeys=False, hangs=0.05, jitter=0.9, dies=0.03), batch)
    world.run()
    assert every_cell_once(world)


@given(grids, pools, seeds, batches, st.booleans(), st.integers(1, 4))
def test_the_tiles_alive_at_once_stay_within_the_plans_bound(
    grid: Grid, pool: list[float], seed: int, batch: int, calm: bool, in_a_merge: int
) -> None:
    habits = Habits() if calm else Habits(dies=0.05, hangs=0.02, merge_lost=0.05)
    world = World(grid, pool, seed, habits, batch, tile_bytes=MOST_BYTES // in_a_merge)
    world.run()
    witnesses = 0 if calm else WITNESSES
    in_merges = FULL_MERGES * in_a_merge
    assert world.most_alive <= (
        grid.max_waiting() + CALLS_PER_REPLICA * len(pool) * batch + in_merges + witnesses
    )


@given(grids, pools, seeds, batches)
def test_kills_by_a_random_hand_poison_no_tile(grid: Grid, pool: list[float], seed: int, batch: int) -> None:
    world = World(grid, pool, seed, Habits(dies=0.12), batch)
    world.run()
    assert not poisoned(world)


@given(st.integers(20, 40), pools, seeds, batches, st.data())
@settings(max_examples=30)
def test_tiles_that_always_kill_are_found_and_no_others(
    calls: int, pool: list[float], seed: int, batch: int, data: st.DataObject
) -> None:
    tiles = calls * batch
    grid = make_grid(48 * tiles + 16, 64, tile=64, overlap=16, multiple=16)
    killers = data.draw(st.frozensets(st.integers(0, tiles - 1), min_size=1, max_size=3))
    world = World(grid, pool, seed, Habits(killers=killers), batch)
    world.run()
    assert poisoned(world) == killers
    assert every_cell_once(world)


@given(st.integers(4, 40), pools, seeds, batches, st.data())
def test_tiles_that_always_raise_are_found_and_no_others(
    tiles: int, pool: list[float], seed: int, batch: int, data: st.DataObject
) -> None:
    grid = make_grid(48 * tiles + 16, 64, tile=64, overlap=16, multiple=16)
    raisers = data.draw(st.frozensets(st.integers(0, tiles - 1), min_size=1, max_size=2))
    world = World(grid, pool, seed, Habits(raisers=raisers), batch)
    world.run()
    assert poisoned(world) == raisers
    assert every_cell_once(world)


@given(grids, seeds, batches, st.data())
def test_a_resumed_job_computes_only_what_it_needs_in_the_groups_of_the_whole(
    grid: Grid, seed: int, batch: int, data: st.DataObject
) -> None:
    done = data.draw(st.sets(st.sampled_from(range(grid.n_cells))))
    world = World(grid, [1.0, 1.0], seed, batch=batch, cells_done=tuple(sorted(done)))
    world.run()
    needed = {tile for cell in set(range(grid.n_cells)) - done for tile in grid.cell_tiles(cell)}
    groups = {group for group in grid.tile_groups(batch) if needed.intersection(group)}
    assert {event.call.tiles for event in world.heard(TilesDone)} == groups
    assert every_cell_once(world)


@given(grids, pools, seeds)
def test_a_lost_call_is_told_as_lost_and_counted(grid: Grid, pool: list[float], seed: int) -> None:
    world = World(grid, pool, seed, Habits(dies=0.1, raises=0.05))
    world.run()
    assert world.scheduler.summary().retries == len(world.heard(TilesLost))


def test_a_model_that_raises_wherever_it_is_asked_ends_the_job_however_much_is_flat() -> None:
    grid = square(100)
    flat = frozenset(range(60))
    habits = Habits(flat=flat, raisers=frozenset(range(grid.n_tiles)) - flat)
    with pytest.raises(Stopped, match="the model fails on every tile"):
        World(grid, [1.0] * 2, habits=habits).run()


def test_flat_tiles_are_no_witnesses_against_one_that_is_hit_from_outside() -> None:
    """They pass between two kills, whoever is killed."""
    grid = square(100)
    world = World(grid, [1.0], habits=Habits(tile_s=70.0, flat=frozenset(range(1, 90))))
    kills = 3

    def strike() -> None:
        nonlocal kills
        calls = world.actors[0].calls
        if kills and calls and calls[0][0].tiles == (0,):
            kills -= 1
            world.die(0, "died", "killed")
        world.at(20.0, strike)

    world.at(20.0, strike)
    world.run()
    assert not kills
    assert not poisoned(world)
