"""Steering a predicted x0 towards what DINO sees in the base: training-free, for every ``Denoiser``.

As in universal guidance on the predicted clean image (Bansal et al. 2023, arXiv:2302.07121), but with a loss that is
silent for patches that are faithful already, steps as long as what is left of it (Polyak 1969, *Minimization of
unsmooth functionals*), and halved until it really falls. So a faithful tile is left alone, to the bit. Each step looks
through another lattice of patches: what lowers the loss through one alone is mostly grain that only this one sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_ray.dino.lattice import Lattice, cosines, guiding_phases, over

if TYPE_CHECKING:
    from dino_ray.dino.extract import FeatureModel

Sketch = Callable[[Tensor], Tensor]
"""Latents (B, C, h, w) to pixels (B, 3, H, W), nominally in [0, 1], with a gradient; a tile does not see the others."""

ROUNDS = 16
"""Gradient steps for a tile, at most: four through each lattice. On tiles full of noise that takes four fifths of the
loss away. A model of several steps has them shared out, for what one has brought the next prediction keeps; of each
prediction all lattices are looked through once."""

HALVINGS = 3
"""How often a step that does not lower the loss is halved before it is left out."""


@dataclass(frozen=True)
class Guidance:
    """Steers predictions of a batch of tiles; make one by ``towards``.

    A loss is, through one lattice, the mean over a tile's patches of how far ``1 - cosine`` exceeds ``dead_band``.
    """

    dino: FeatureModel
    sketch: Sketch
    lattices: tuple[Lattice, ...]
    targets: tuple[Tensor, ...]
    """For each lattice (B, rows, cols, dim): the tokens of the base."""
    strength: float
    """In (0, 1]: what part of a tile's loss is to go."""
    dead_band: float
    """``1 - cosine`` up to which a patch counts as faithful."""
    rounds: int
    """Gradient steps per prediction, at most."""

    @classmethod
    def towards(
        cls,
        dino: FeatureModel,
        sketch: Sketch,
        latents: Tensor,
        strength: float,
        dead_band: float,
        steps: int = 1,
    ) -> Guidance:
        """Guidance towards the base.

        Parameters
        ----------
        sketch
            Also shows the base, so that like is compared with like.
        latents
            (B, C, h, w) of the base.
        steps
            Of the model, which share the rounds.
        """
        with torch.no_grad():
            pixels = _seen(sketch(latents))
            lattices = over(pixels, dino.patch, guiding_phases(dino.patch))
            targets = [lattice.tokens(dino, pixels) for lattice in lattices]
        with torch.inference_mode(False):  # what was made under it can take no part in a gradient; clones can
            targets = [target.clone() for target in targets]
        rounds = max(len(lattices), ROUNDS // steps)
        return cls(dino, sketch, lattices, tuple(targets), strength, dead_band, rounds)

    def __call__(self, x0: Tensor) -> Tensor:
        """Predicted latents (B, C, h, w), steered; tiles within the dead band come back as they are, to the bit."""
        with torch.no_grad():
            # Half of the lattices see all of a tile; that they are content costs little to find out.
            losses = [self._loss(x0, which) for which in range(len(self.lattices) // 2)]
            drifted = (torch.stack(losses) > 0).any(0)
            if not bool(drifted.any()):
                return x0
        # Faster kernels of attention sum up gradients in no fixed order on a GPU.
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            return self._steer(x0.clone(), drifted.clone())

    def _steer(self, x: Tensor, drifted: Tensor) -> Tensor:
        """``drifted``, (B,): tiles that are to move; the others stay, whatever comes with them in a batch."""
        with torch.no_grad():
            losses = [self._loss(x, which) for which in range(len(self.lattices))]
            goals = [torch.where(drifted, (1 - self.strength) * loss, math.inf) for loss in losses]
        idle = 0
        for step in range(self.rounds):
            which = step % len(goals)
            x, moved = self._descend(x, which, goals[which])
            idle = 0 if moved else idle + 1
            if idle == len(goals):
                break
        return x

    def _descend(self, x: Tensor, which: int, goal: Tensor) -> tuple[Tensor, bool]:
        """One step of each tile towards its goal (B,), halved until its loss falls; and whether any tile moved."""
        x.requires_grad_()
        loss = self._loss(x, which)
        if not bool((loss > goal).any()):
            return x.detach(), False
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        x, loss = x.detach(), loss.detach()
        # After this step a loss that went on falling as it does here would be at the goal.
        length = (loss - goal).clamp_min(0) / gradient.square().sum((1, 2, 3)).clamp_min(1e-30)
        with torch.no_grad():
            for _ in range(HALVINGS + 1):
                ahead = x - length.view(-1, 1, 1, 1) * gradient
                falls = self._loss(ahead, which) < loss
                if bool((falls | (length == 0)).all()):
                    break
                length = torch.where(falls, length, length / 2)
        return torch.where(falls.view(-1, 1, 1, 1), ahead, x), bool(falls.any())

    def _loss(self, x: Tensor, which: int) -> Tensor:
        """Through one of the lattices: (B,)."""
        tokens = self.lattices[which].tokens(self.dino, _seen(self.sketch(x)))
        return (1 - cosines(tokens, self.targets[which]) - self.dead_band).clamp_min(0).mean((1, 2))


def _seen(pixels: Tensor) -> Tensor:
    """What a picture of these pixels shows."""
    return pixels.float().clamp(0, 1)
