"""Promises of what a report says of fidelity: each tile counts once, and sums are those of its errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.fidelity import summary as module
from dino_ray.fidelity.record import ACTIONS, HEAT_SIDE, TileFidelity
from dino_ray.fidelity.summary import Ledger, summary
from dino_ray.plan.geometry import make_grid

GRID = make_grid(640, 480, tile=128, overlap=32, multiple=16)
SQUARES = HEAT_SIDE**2


def record(tile: int, **changes: object) -> TileFidelity:
    plain = TileFidelity(tile, "accepted", 0.99, 0.97, 0.9, 40.0, 1.5, 0.5, 0, tuple(range(SQUARES)))
    return replace(plain, **changes)  # type: ignore[arg-type]


unit = st.none() | st.floats(-1, 1)
records = st.builds(
    TileFidelity,
    st.integers(0, GRID.n_tiles - 1),
    st.sampled_from(ACTIONS),
    unit,
    unit,
    unit,
    st.none() | st.floats(0, 99),
    st.none() | st.floats(0, 255),
    st.none() | st.floats(0, 50),
    st.integers(0, 3),
    st.just(()) | st.lists(st.integers(0, 255), min_size=SQUARES, max_size=SQUARES).map(tuple),
)


@given(st.lists(records))
def test_a_tile_counts_once_whatever_was_tried(noted: list[TileFidelity]) -> None:
    ledger = Ledger(GRID.n_tiles)
    for each in noted:
        ledger.note(each)
    kept = {each.tile: each for each in noted}
    said = summary(ledger, GRID)
    assert [row["tile"] for row in said["tiles"]] == sorted(kept)
    assert sum(said["actions"].values()) == len(kept) == len(ledger)
    assert said["unrecorded"] == GRID.n_tiles - len(kept)
    for row in said["tiles"]:
        then = kept[row["tile"]]
        rect = GRID.tile_rect(then.tile)
        assert row.pop("rect") == [rect.x, rect.y, rect.w, rect.h]
        now = TileFidelity.from_dict(row)
        assert (now.action, now.retries, now.heat) == (then.action, then.retries, then.heat)
        assert now.cosine_min == pytest.approx(then.cosine_min, abs=1e-5)
        assert now.alarm == pytest.approx(then.alarm, abs=1e-3)


def test_sums_are_over_the_tiles_that_were_verified() -> None:
    ledger = Ledger(GRID.n_tiles)
    ledger.note(record(0, cosine_mean=0.98, cosine_min=0.4, alarm=1.0, action="blended"))
    ledger.note(record(1, cosine_mean=0.99, colour_drift=4.5))
    ledger.note(TileFidelity(2, "skipped"))
    ledger.note(record(3, cosine_mean=1.0, alarm=3.0, action="kept", consistency_db=99.0))
    said = summary(ledger, GRID, given_up=2)
    assert said["cosine_mean"] == pytest.approx(0.99, abs=1e-5)
    assert said["cosine_min"] == pytest.approx(0.4, abs=1e-5)
    assert (said["colour_drift_max"], said["colour_drift_mean"]) == (4.5, 2.5)
    assert said["actions"] == {"accepted": 1, "blended": 1, "retried": 0, "kept": 1, "skipped": 1}
    assert said["caught"] == 2
    assert said["unrecorded"] == GRID.n_tiles - 4 - 2


def test_nine_of_ten_tiles_have_nine_of_ten_patches_above_the_tenth_percentile() -> None:
    ledger = Ledger(GRID.n_tiles)
    values = np.linspace(0.5, 1, GRID.n_tiles)
    for tile, value in enumerate(values):
        ledger.note(record(tile, cosine_p10=float(value)))
    assert summary(ledger, GRID)["cosine_p10"] == pytest.approx(np.percentile(values, 10), abs=1e-5)


def test_consistency_is_of_the_mean_error_not_the_mean_of_decibels() -> None:
    ledger = Ledger(GRID.n_tiles)
    for tile, db in enumerate((20.0, 60.0)):
        ledger.note(record(tile, consistency_db=db))
    expected = -10 * math.log10((10**-2 + 10**-6) / 2)
    assert summary(ledger, GRID)["consistency_db"] == pytest.approx(expected, abs=0.01)


def test_where_nothing_was_verified_there_are_no_numbers_and_json_takes_all() -> None:
    ledger = Ledger(GRID.n_tiles)
    ledger.note(TileFidelity(5, "skipped"))
    ledger.note(record(6, alarm=float("inf"), consistency_db=float("nan")))
    said = json.loads(json.dumps(summary(ledger, GRID), allow_nan=False))
    assert said["consistency_db"] is None
    assert summary(Ledger(GRID.n_tiles), GRID)["cosine_mean"] is None


def test_a_tile_that_was_given_up_since_has_no_record() -> None:
    ledger = Ledger(GRID.n_tiles)
    ledger.note(record(3))
    ledger.note(record(4))
    ledger.forget({3: "too bright"})
    assert [each.tile for each in ledger] == [4]


@pytest.mark.parametrize(
    "bad",
    [record(GRID.n_tiles), record(-1), record(0, action="praised"), record(0, heat=(1, 2, 3))],
)
def test_what_is_no_record_of_the_image_is_refused(bad: TileFidelity) -> None:
    with pytest.raises(ValueError, match=r"no record|squares"):
        Ledger(GRID.n_tiles).note(bad)


def test_the_worst_come_first_by_alarm_and_then_by_their_worst_patch() -> None:
    ledger = Ledger(GRID.n_tiles)
    ledger.note(record(0, alarm=0.1, cosine_min=0.2))
    ledger.note(record(1, alarm=2.0))
    ledger.note(record(2, alarm=0.1, cosine_min=0.1))
    ledger.note(TileFidelity(3, "skipped"))
    assert ledger.worst(5) == [1, 2, 0]
    assert ledger.worst(2) == [1, 2]


def test_a_tile_that_shows_the_models_work_is_found_near_another() -> None:
    ledger = Ledger(GRID.n_tiles)
    assert ledger.drawn_near(0) is None
    for tile, action in enumerate(ACTIONS):
        ledger.note(TileFidelity(tile, action))
    shown = {"accepted", "blended", "retried"}
    assert [ledger.drawn_near(tile) for tile, action in enumerate(ACTIONS) if action in shown] == [0, 1, 2]
    assert ledger.drawn_near(GRID.n_tiles) == 2


def test_of_very_many_tiles_the_worst_are_listed_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    ledger = Ledger(GRID.n_tiles)
    for tile in range(10):
        ledger.note(record(tile, alarm=float(tile % 7)))
    said = summary(ledger, GRID)
    assert [row["tile"] for row in said["tiles"]] == [4, 5, 6]
    assert said["tiles_left_out"] == 7
    assert said["actions"]["accepted"] == 10


def test_summing_up_needs_no_torch() -> None:
    code = "import sys, dino_ray.fidelity.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
