"""Muon: momentum whose matrices are made orthogonal before they are applied.

After Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): of a convolution, the matrix is (out, in ×
kernel). What is no matrix, biases and slopes, is Adam's. On small nets it takes about half of Adam's steps
(``scripts/bench/architectures.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ADAM_BETAS, ADAM_EPS = (0.9, 0.99), 1e-8
ADAM_SHARE = 0.5
"""Of Muon's rate: what Adam's parameters learn by."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Muon for weights of two dimensions and more, Adam for the rest."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if weight.ndim >= 2:
                    _orthogonal_step(weight, state, group["lr"])
                else:
                    _adam_step(weight, state, ADAM_SHARE * group["lr"])


def _orthogonal_step(weight: Tensor, state: dict[str, Any], rate: float) -> None:
    grad = weight.grad
    assert grad is not None
    momentum = state.setdefault("momentum", torch.zeros_like(weight))
    momentum.lerp_(grad, 1 - MOMENTUM)
    update = orthogonal(grad.lerp(momentum, MOMENTUM).flatten(1)).view(weight.shape)
    rows, columns = weight.shape[0], weight[0].numel()
    weight.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of ``matrix`` = U S Vᵀ, by the Newton-Schulz iteration that Muon uses."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def _adam_step(weight: Tensor, state: dict[str, Any], rate: float) -> None:
    grad = weight.grad
    assert grad is not None
    if not state:
        state.update(step=torch.tensor(0.0), first=torch.zeros_like(weight), second=torch.zeros_like(weight))
    state["step"] += 1
    state["first"].lerp_(grad, 1 - ADAM_BETAS[0])
    state["second"].lerp_(grad.square(), 1 - ADAM_BETAS[1])
    first = state["first"] / (1 - ADAM_BETAS[0] ** state["step"])
    second = state["second"] / (1 - ADAM_BETAS[1] ** state["step"])
    weight.addcdiv_(first, second.sqrt().add_(ADAM_EPS), value=-float(rate))
