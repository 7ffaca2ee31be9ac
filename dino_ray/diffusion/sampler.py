"""Samplers over the ``Denoiser`` protocol, after Karras et al. 2022, *Elucidating the Design Space of
Diffusion-Based Generative Models* (arXiv:2206.00364).

Both solve ``dx/dsigma = (x - x0(x, sigma)) / sigma``: the paper's equation 3 and, where a model mixes
``(1 - sigma) x0 + sigma noise``, the rectified flow's as well. Neither keeps anything between steps: a step
can run on any replica, but for a model with a step cache, which keeps something within ``Denoiser.sampling``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from dino_ray.diffusion.denoiser import Conditioning, Denoiser

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["euler", "heun"]
METHODS: tuple[Method, ...] = get_args(Method)

if TYPE_CHECKING:
    Amend = Callable[[Tensor, float], Tensor]
    """Changes a predicted x0 (B, C, h, w), given the noise level that it was predicted at; guidance is one."""


def sample(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    conditioning: Conditioning,
    method: Method = "euler",
    before_step: Callable[[int], None] | None = None,
    amend: Amend | None = None,
) -> Tensor:
    """Follow ``sigmas`` from noisy latents to clean ones.

    Parameters
    ----------
    denoiser : Denoiser
    x : Tensor
        (B, C, h, w) float32 latents at noise level ``sigmas[0]``.
    sigmas : Tensor
        (steps + 1,) strictly decreasing; the last is 0 for clean latents.
    conditioning : Conditioning
    method : {"euler", "heun"}
        Heun calls the model twice a step, except on a step to 0.
    before_step : callable, optional
        Told the index of each step before it runs; raise from it to stop.
    amend : callable, optional
        Changes each prediction before it is used.

    Returns
    -------
    Tensor
        Latents at ``sigmas[-1]``, the shape of ``x``.
    """
    levels: list[float] = sigmas.tolist()
    with denoiser.sampling():
        for i, (sigma, to) in enumerate(pairwise(levels)):
            if before_step is not None:
                before_step(i)
            x = step(denoiser, x, sigma, to, conditioning, method, amend)
    return x


def step(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float,
    to: float,
    conditioning: Conditioning,
    method: Method = "euler",
    amend: Amend | None = None,
) -> Tensor:
    """Latents ``x`` at noise level ``sigma``, taken to a lower level ``to`` (>= 0) by one step."""

    def predict(x: Tensor, sigma: float) -> Tensor:
        x0 = denoiser.predict(x, sigma, conditioning)
        return x0 if amend is None else amend(x0, sigma)

    return _STEPS[method](predict, x, sigma, to)


def _euler(predict: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float, to: float) -> Tensor:
    """First order: along the straight line from ``x`` to the x0 seen from it; a step to 0 is that x0."""
    x0 = predict(x, sigma)
    return x0 + (to / sigma) * (x - x0)


def _heun(predict: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float, to: float) -> Tensor:
    """Second order, the paper's algorithm 1: along the mean of the slopes at both ends of Euler's step.

    At 0 there is no slope to see: the step to it is Euler's.
    """
    if to == 0:
        return _euler(predict, x, sigma, to)
    slope = (x - predict(x, sigma)) / sigma
    ahead = x + (to - sigma) * slope
    slope_ahead = (ahead - predict(ahead, to)) / to
    return x + (to - sigma) * (slope + slope_ahead) / 2


_STEPS = {"euler": _euler, "heun": _heun}
