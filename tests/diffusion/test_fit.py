"""Promises of --fit's decision: it picks nothing that does not fit, nothing worse than it must, and heeds the user."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.diffusion import fit
from dino_ray.diffusion.fit import Asked, Demand, Machine, Stages, Way
from dino_ray.diffusion.footprint import Count

ALL = ("nf4", "int8", "torchao-int8", "torchao-fp8")


def count(parameters: int) -> Count:
    return Count(
        parameters,
        parameters * 9 // 10,
        parameters * 3 // 4,
        parameters // 20,
        parameters // 20,
        parameters // 99,
    )


def demand(core: float, vae: float = 0.1, text: float = 5.0, work: float = 1.0) -> Demand:
    """Of billions of parameters, and GB of work."""
    gb = int(work * 1e9)
    stages = {None: Stages(gb, 2 * gb, 3 * gb, gb, gb)} | {
        side: Stages(gb, gb * side // 1024, gb * side // 1024, gb, gb) for side in (512, 256)
    }
    encoders = ((count(int(text * 1e9)), True),) if text else ()
    return Demand(count(int(core * 1e9)), count(int(vae * 1e9)), encoders, stages, 1024**2)


demands = st.builds(
    demand,
    core=st.floats(0.1, 40),
    vae=st.floats(0.05, 0.5),
    text=st.just(0.0) | st.floats(0.1, 24.0),
    work=st.floats(0.01, 8),
)
machines = st.builds(
    Machine,
    free=st.floats(0.5e9, 150e9),
    host=st.none() | st.floats(1e9, 200e9),
    quantizers=st.lists(st.sampled_from(ALL), unique=True).map(tuple),
)
asks = st.builds(
    Asked,
    dtype=st.none() | st.sampled_from(("fp32", "bf16", "fp16", "fp8")),
    quantize=st.none() | st.sampled_from(ALL),
    offload=st.none() | st.sampled_from(("none", "model", "group", "sequential")),
    vae_tile=st.none() | st.sampled_from((256, 512, 640)),
)


@settings(max_examples=60)
@given(demands, machines, asks)
def test_what_is_picked_fits_the_gpu_and_the_host_and_is_as_asked(
    demand: Demand, machine: Machine, asked: Asked
) -> None:
    chosen = fit.choose(demand, machine, asked)
    if chosen is None:
        return
    way = chosen.way
    assert fit.replica_needs(demand, way) + fit.RESERVE <= machine.free
    assert fit.text_needs(demand, way) + fit.RESERVE <= machine.free
    assert machine.host is None or fit.host_needs(demand, way) <= machine.host
    assert asked.dtype in (None, way.dtype)
    assert asked.quantize in (None, way.quantize)
    assert asked.offload in (None, way.offload)
    assert asked.vae_tile in (None, way.vae_tile)
    assert way.quantize in (None, asked.quantize, *machine.quantizers)


@settings(max_examples=60)
@given(demands, machines, asks, st.floats(1, 3))
def test_more_memory_never_makes_it_worse(
    demand: Demand, machine: Machine, asked: Asked, factor: float
) -> None:
    order = list(fit.ways(demand, machine, asked))
    some = fit.choose(demand, machine, asked)
    more = fit.choose(demand, replace(machine, free=machine.free * factor), asked)
    if some is not None:
        assert more is not None
        assert order.index(more.way) <= order.index(some.way)


@settings(max_examples=60)
@given(demands, machines, asks)
def test_nothing_before_what_is_picked_would_have_fitted(
    demand: Demand, machine: Machine, asked: Asked
) -> None:
    chosen = fit.choose(demand, machine, asked)
    for way in fit.ways(demand, machine, asked):
        if chosen is not None and way == chosen.way:
            break
        assert not fit.fits(demand, way, machine)


@pytest.mark.parametrize(
    ("free_gb", "picked"),
    [
        (40, Way()),
        (28, Way(vae_tile=512)),
        (24, Way(quantize="torchao-int8")),
        (14, Way(quantize="nf4")),
        (9, Way(offload="group")),
        (7, Way(offload="sequential")),
    ],
)
def test_ways_go_from_whole_over_windows_and_fewer_bits_to_blocks(free_gb: float, picked: Way) -> None:
    wanted = demand(12, text=1.0)
    chosen = fit.choose(wanted, Machine(free_gb * 1e9, None, ALL))
    assert chosen is not None
    assert chosen.way == picked, (chosen, fit.needs(wanted, picked) / 1e9)


def test_without_a_package_weights_are_kept_in_fp8() -> None:
    chosen = fit.choose(demand(12, text=1.0), Machine(22e9))
    assert chosen is not None
    assert chosen.way == Way("fp8")


def test_text_encoders_that_do_not_fit_alone_are_quantised_too() -> None:
    chosen = fit.choose(demand(2, text=12), Machine(20e9, None, ALL))
    assert chosen is not None
    assert chosen.way.quantize == "torchao-int8"


def test_compiled_blocks_are_moved_whole_or_not_at_all() -> None:
    small = Machine(7e9)
    assert fit.choose(demand(12, text=1.0), small) is not None
    assert fit.choose(demand(12, text=1.0), small, Asked(compiled=True)) is None


def test_turns_on_the_gpu_take_the_larger_of_the_two_and_not_both() -> None:
    wanted = demand(4, vae=2, text=0, work=1)
    together, turns = (fit.replica_needs(wanted, Way(offload=how)) for how in ("none", "model"))
    assert together - turns >= 3e9
