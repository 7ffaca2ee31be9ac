"""Promises of the scheduler's parts: who is to blame, what goes into one merge, how long calls take."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.engine.scheduler.blame import WITNESSES, Blame, Record, poisson_tail
from dino_ray.engine.scheduler.merges import MOST_BYTES, MOST_TILES, Merges
from dino_ray.engine.scheduler.pace import HUNG_FIRST_S, HUNG_LEAST_S, OVERDUE_FACTOR, OVERDUE_LEAST_S, Pace

# ---- blame


@given(st.integers(0, 12), st.floats(1e-6, 8.0))
def test_the_tail_of_poissons_distribution(k: int, mean: float) -> None:
    terms = [math.exp(-mean) * mean**n / math.factorial(n) for n in range(120)]
    assert poisson_tail(k, mean) == pytest.approx(sum(terms[k:]), abs=1e-12)


def deaths_until_guilty(blame: Blame, record: Record) -> int:
    return next(n for n in range(1, 100) if blame.died(record))


@pytest.mark.parametrize(("healthy", "deaths"), [(3, 11), (10, 5), (10_000, 5)])
def test_a_killer_is_found_the_sooner_the_more_tiles_are_well(healthy: int, deaths: int) -> None:
    blame = Blame()
    for _ in range(healthy):
        blame.worked(Record())
    assert deaths_until_guilty(blame, Record()) == deaths


def test_where_nothing_else_was_tried_nobody_is_guilty() -> None:
    blame, record = Blame(), Record()
    assert not any(blame.died(record) for _ in range(100))


def test_a_suspect_waits_until_others_came_through() -> None:
    blame, record = Blame(), Record()
    blame.died(record)
    assert not blame.waits_for_witnesses(record), "one death is no suspicion"
    blame.died(record)
    for _ in range(WITNESSES):
        assert blame.waits_for_witnesses(record)
        blame.worked(Record())
    assert not blame.waits_for_witnesses(record)
    assert blame.died(record)


def test_killers_do_not_vouch_for_one_another_for_ever() -> None:
    blame = Blame()
    for _ in range(100):
        blame.worked(Record())
    killers = [Record() for _ in range(10)]
    for _ in range(12):
        killers = [record for record in killers if not blame.died(record) or blame.convicted(record)]
    assert not killers


def test_a_killer_that_is_found_no_longer_hides_the_next_one() -> None:
    blame = Blame()
    for _ in range(WITNESSES):
        blame.worked(Record())
    for _ in range(5):
        record = Record()
        assert deaths_until_guilty(blame, record) == 5
        blame.convicted(record)


@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0.0, 0.3))
def test_a_hand_that_kills_at_random_is_not_taken_for_a_tile(seed: int, tiles: int, kills: float) -> None:
    dice, blame = random.Random(seed), Blame()
    records = [Record() for _ in range(tiles)]
    guilty = 0
    while records:
        waiting = [record for record in records if not blame.waits_for_witnesses(record)]
        record = dice.choice((waiting or records)[:4])  # those that are at work
        if dice.random() < kills:
            guilty += blame.died(record)
        else:
            blame.worked(record)
            blame.finished(record)
            records.remove(record)
    assert guilty == 0


# ---- merges


def squares(columns: int) -> list[tuple[int, int, int, int]]:
    """Tiles of the cells in which four tiles meet, two rows of tiles."""
    return [(c, c + 1, c + columns + 1, c + columns + 2) for c in range(columns)]


def test_where_there_is_room_each_group_of_cells_goes_alone() -> None:
    merges = Merges()
    for cell, tiles in enumerate(squares(3)):
        merges.add(cell, tiles)
    assert [cells for cells, _ in merges.start(4)] == [(0,), (1,), (2,)]


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 30))
def test_merges_share_out_what_waits_and_none_is_too_large(
    columns: int, at_once: int, megabytes: int
) -> None:
    merges = Merges(tile_bytes=megabytes << 20)
    for cell, tiles in enumerate(squares(columns)):
        merges.add(cell, tiles)
    seen: list[int] = []
    while merges.waiting:
        started = merges.start(at_once)
        assert len(started) == merges.in_flight <= at_once
        for cells, tiles in started:
            assert set(tiles) == {tile for cell in cells for tile in squares(columns)[cell]}
            assert len(cells) == 1 or len(tiles) <= MOST_TILES
            assert len(cells) == 1 or len(tiles) * (megabytes << 20) <= MOST_BYTES
            assert len(cells) == 1 or max(cells) - min(cells) == len(cells) - 1, "neighbours share tiles"
            seen += cells
        assert started[0][0][0] == min(cell for cells, _ in started for cell in cells), (
            "the oldest goes first"
        )
        for cells, _ in started:
            for cell in cells:
                merges.ended(cell)
    assert sorted(seen) == list(range(columns))


def test_while_tiles_come_what_is_ready_goes_together_and_beside_another_merge_only_a_full_one() -> None:
    merges, groups = Merges(), squares(40)
    for cell in range(3):
        merges.add(cell, groups[cell])
    assert [cells for cells, _ in merges.start(4, patient=True)] == [(0, 1, 2)], (
        "nothing is gained by waiting"
    )
    for cell in range(3, MOST_TILES):
        merges.add(cell, groups[cell])
        started = merges.start(4, patient=True)
        if started:
            break
    ((_, tiles),) = started
    assert len(tiles) == MOST_TILES
    merges.add(30, groups[30])
    assert merges.start(4, patient=True) == []
    assert [cells for cells, _ in merges.start(4)] == [(30,)]


def test_a_cell_whose_merge_was_lost_goes_alone() -> None:
    merges = Merges()
    for cell, tiles in enumerate(squares(6)):
        merges.add(cell, tiles)
    ((cells, _),) = merges.start(1)
    assert len(cells) == 6
    for cell in cells:
        merges.lost(cell)
        merges.add(cell, squares(6)[cell])
    for _ in range(6):
        (((cell,), _),) = merges.start(1)
        merges.ended(cell)


def test_cells_of_a_tile_that_is_lost_wait_for_it() -> None:
    merges = Merges()
    for cell, tiles in enumerate(squares(6)):
        merges.add(cell, tiles)
    merges.withhold(2)
    assert sorted(cell for cells, _ in merges.start(9) for cell in cells) == [0, 3, 4, 5]


# ---- pace


def test_nothing_is_late_before_a_call_has_shown_how_long_it_takes() -> None:
    assert Pace().overdue_after(0, 1, first=True) is None
    assert Pace().hung_after(0, 1, first=False) is None


def test_a_replica_is_known_by_its_usual_call_not_by_an_odd_one() -> None:
    pace = Pace()
    for seconds in (10.0, 10.0, 500.0, 10.0, 11.0):
        pace.learn(0, seconds, 1, first=False)
    assert pace.of(0) == 10.0
    assert pace.overdue_after(0, 1, first=False) == OVERDUE_FACTOR * 10
    assert pace.overdue_after(0, 4, first=False) == OVERDUE_FACTOR * 40
    assert pace.hung_after(0, 1, first=False) == 100.0


def test_a_slow_replica_is_given_the_time_it_needs() -> None:
    pace = Pace()
    for _ in range(9):
        for replica in range(5):
            pace.learn(replica, 40.0 if replica == 4 else 10.0, 1, first=False)
    assert pace.of(4) == 40.0
    assert pace.overdue_after(4, 1, first=False) == OVERDUE_FACTOR * 40
    assert pace.of(99) == 10.0, "a new one is taken to be as the others are"


def test_of_a_first_call_the_others_tell_how_much_was_warming_up() -> None:
    pace = Pace()
    for replica in range(4):
        pace.learn(replica, 120.0, 1, first=True)
        pace.learn(replica, 10.0, 1, first=False)
    pace.learn(9, 240.0, 1, first=True)
    assert pace.of(9) == 20.0
    assert pace.of(8, first=True) == 120.0


def test_short_calls_are_not_called_late_for_a_moments_delay() -> None:
    pace = Pace()
    pace.learn(0, 0.01, 1, first=False)
    assert pace.overdue_after(0, 1, first=False) == OVERDUE_LEAST_S
    assert pace.hung_after(0, 1, first=False) == HUNG_LEAST_S
    assert pace.hung_after(0, 1, first=True) == HUNG_FIRST_S


def test_two_answers_in_one_breath_do_not_make_a_replica_infinitely_fast() -> None:
    pace = Pace()
    pace.learn(0, 10.0, 1, first=False)
    pace.learn(0, 0.0, 1, first=False)
    assert pace.of(0) == 10.0
