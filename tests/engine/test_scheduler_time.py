"""What the scheduler makes of a pool's time, in virtual seconds: exact, and the same on any machine."""

from __future__ import annotations

import pytest
from worlds import Habits, World, square

from dino_ray.engine.protocol import ReplicaReady


def efficiency(world: World) -> float:
    """The time in which the pool could do all tiles, were they divisible, over the time it took."""
    ideal = (
        world.grid.n_tiles * world.habits.tile_s / sum(1 / actor.slowness for actor in world.actors.values())
    )
    return ideal / world.run()


@pytest.mark.parametrize(("replicas", "tiles", "least"), [(8, 200, 0.98), (32, 1024, 0.97), (1, 50, 0.98)])
@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_equal_replicas_are_kept_busy(replicas: int, tiles: int, least: float, jitter: float) -> None:
    world = World(
        square(tiles, columns=10 if tiles == 200 else 0), [1.0] * replicas, habits=Habits(jitter=jitter)
    )
    assert efficiency(world) >= least - jitter / 10
    assert world.scheduler.summary().copies <= replicas, "copies of calls that were not late"


@pytest.mark.parametrize("tiles", [100, 200, 400])
@pytest.mark.parametrize("tile_s", [0.3, 10.0])
def test_one_slow_replica_of_eight_costs_little(tiles: int, tile_s: float) -> None:
    world = World(square(tiles), [1.0] * 7 + [4.0], habits=Habits(tile_s=tile_s))
    assert efficiency(world) >= 0.93


def test_a_pool_of_all_speeds_is_used() -> None:
    assert efficiency(World(square(600), [1.0] * 6 + [2.0, 3.0, 5.0, 8.0])) >= 0.93
    assert efficiency(World(square(1024), [1.0] * 16 + [4.0] * 16)) >= 0.9


def test_a_replica_that_turns_slow_does_not_hold_up_the_others() -> None:
    world = World(square(200), [1.0] * 8)

    def turn_slow() -> None:
        world.actors[3].slowness = 8.0

    world.at(5.0, turn_slow)
    assert 200 / 7.125 / world.run() >= 0.88


def test_a_replica_that_joins_gets_work_at_once() -> None:
    world = World(square(200), [1.0] * 2)
    world.at(5.0, world.join)
    time = world.run()
    ready = next(event for event in world.told if isinstance(event, ReplicaReady))
    assert any(call.replica == ready.replica for call in world.told if hasattr(call, "call"))
    assert time < 200 / 2 * 0.85


@pytest.mark.parametrize("replicas", [2, 8])
def test_a_hung_replica_costs_no_more_than_itself(replicas: int) -> None:
    world = World(square(100), [1.0] * replicas)
    world.at(10.2, lambda: world.hang(0))
    assert world.run() <= 10.2 + (100 - 10 * replicas + 4) / (replicas - 1) + 2
    assert sum(world.merged.values()) == world.grid.n_cells


def test_a_hung_replica_is_replaced_and_works_again() -> None:
    world = World(square(400), [1.0, 1.0])
    world.at(10.2, lambda: world.hang(0))
    world.run()
    assert world.replaced == [0]
    back = next(i for i, event in enumerate(world.told) if isinstance(event, ReplicaReady))
    assert any(
        getattr(event, "replica", None) == 0 and hasattr(event, "pixels") for event in world.told[back:]
    )


def test_no_machine_is_blamed_for_warming_up() -> None:
    world = World(square(60), [1.0] * 4, habits=Habits(first_s=120.0))
    world.run()
    assert not world.replaced
    assert not world.scheduler.summary().copies


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("first_s", [0.0, 120.0])
def test_tiles_that_the_model_sees_are_not_late_by_those_that_it_does_not(batch: int, first_s: float) -> None:
    """Nine tenths of a picture are sky."""
    grid = square(400)
    flat = frozenset(range(grid.n_tiles)) - frozenset(range(150, 400, 6))
    habits = Habits(tile_s=70.0, flat=flat, first_s=first_s)
    world = World(grid, [1.0] * 4, habits=habits, batch=batch)
    world.run()
    assert not world.replaced
    assert world.scheduler.summary().copies <= 4


def test_the_pace_is_that_of_a_tile_that_is_made_once() -> None:
    grid = square(400)
    world = World(grid, [1.0] * 4, habits=Habits(tile_s=10.0, retries=frozenset(range(0, 400, 2))))
    world.run()
    pace = world.scheduler._pool._pace
    assert pace.typical() == pytest.approx(10.0, rel=0.1)
