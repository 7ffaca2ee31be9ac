"""Promises about which machines get how many replicas."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.engine.ray.placement import Node, Resources, Share, places, replica_count, share_of
from dino_ray.errors import UsageError

ONE_GPU = Share(1.0, 0.0)


def node(
    name: str, cpus: float = 8, gpus: float = 0, free: Resources | None = None, draining: bool = False
) -> Node:
    return Node(name, name, Resources(cpus, gpus), free, draining)


def place(
    nodes: list[Node], share: Share, wanted: int, least: int = 1, **known: dict[str, int]
) -> Counter[str]:
    living, running, fewer = (known.get(name, {}) for name in ("living", "running", "fewer"))
    return Counter(node.name for node in places(nodes, share, living, running, fewer, wanted, least))


def test_machines_of_any_kind_get_a_replica_for_each_gpu_and_none_without() -> None:
    nodes = [node("head"), node("big", gpus=8), node("small", gpus=1)]
    assert place(nodes, ONE_GPU, 99) == {"big": 8, "small": 1}


def test_without_gpus_a_replica_holds_the_cpus_of_its_threads() -> None:
    share = share_of(None, 3, [Resources(8, 0), Resources(2, 0)])
    assert place([node("a", 8), node("b", 2)], share, 99) == {"a": 2}


def test_one_gpu_anywhere_makes_replicas_hold_gpus() -> None:
    assert share_of(None, 2, [Resources(64, 0), Resources(4, 1)]) == ONE_GPU
    assert share_of(0.0, 2, [Resources(4, 1)]) == Share(0.0, 2.0)


@pytest.mark.parametrize(("share", "gpus", "room"), [(0.4, 2, 4), (1 / 3, 2, 6), (0.1, 1, 10), (2, 5, 2)])
def test_a_share_of_a_gpu_lies_on_one_gpu(share: float, gpus: int, room: int) -> None:
    assert Share(share, 0.0).goes_into(Resources(1, gpus)) == room


def test_few_replicas_are_spread_over_machines() -> None:
    assert place([node("a", gpus=4), node("b", gpus=4)], ONE_GPU, 2) == {"a": 1, "b": 1}


def test_what_others_hold_is_left_to_them_unless_the_least_needs_it() -> None:
    held = node("held", gpus=2, free=Resources(8, 0))
    open_ = node("open", gpus=1, free=Resources(8, 1))
    assert place([held, open_], ONE_GPU, wanted=3, least=1) == {"open": 1}
    assert place([held, open_], ONE_GPU, wanted=3, least=2) == {"open": 1, "held": 1}


def test_what_this_job_holds_is_no_room_and_not_held_by_others() -> None:
    half = node("a", gpus=2, free=Resources(8, 1))
    assert place([half], ONE_GPU, 9, living={"a": 1}, running={"a": 1}) == {"a": 1}
    full = replace(half, free=Resources(8, 0))
    assert place([full], ONE_GPU, 9, least=0, living={"a": 2}, running={"a": 2}) == {}


def test_machines_about_to_go_and_places_found_unfit_get_nothing() -> None:
    nodes = [node("going", gpus=4, draining=True), node("short", gpus=2)]
    assert place(nodes, ONE_GPU, 9, fewer={"short": 1}) == {"short": 1}


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8), st.booleans()), max_size=6),
    st.sampled_from([Share(1.0, 0), Share(0.5, 0), Share(2.0, 0), Share(0, 4.0)]),
    st.integers(0, 40),
)
def test_no_machine_is_overfilled_and_no_room_is_left_while_more_are_wanted(
    machines: list[tuple[int, int, bool]], share: Share, wanted: int
) -> None:
    nodes = [node(str(i), cpus, gpus, draining=going) for i, (cpus, gpus, going) in enumerate(machines)]
    chosen = place(nodes, share, wanted, least=0)
    room = {each.name: 0 if each.draining else share.goes_into(each.total) for each in nodes}
    assert all(count <= room[name] for name, count in chosen.items())
    assert chosen.total() == min(wanted, sum(room.values()))


def test_what_can_never_be_placed_is_refused_with_the_room_there_is() -> None:
    machines = [Resources(8, 2), Resources(8, 1)]
    assert replica_count(1, 99, machines, ONE_GPU) == 3
    assert replica_count(2, 2, machines, ONE_GPU) == 2
    with pytest.raises(UsageError, match=r"--workers 4: this Ray has 3 GPUs and 16 CPUs, room for 3"):
        replica_count(4, 4, machines, ONE_GPU)
    with pytest.raises(
        UsageError, match=r"--gpus-per-worker 3: no machine of this Ray has room for one replica"
    ):
        replica_count(1, 9, machines, Share(3.0, 0.0))
