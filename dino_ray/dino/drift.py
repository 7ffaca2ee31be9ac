"""How far a refined tile has drifted from its base, patch by patch, as DINO sees it.

Refined and base are compared on the same crop, on lattices that guidance does not use. A patch's drift is
``1 - cosine``, weighed by whether there is anything to see: features of flat, dark or foggy patches turn with
differences that no eye finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_ray.dino.lattice import Lattice, cosines, judging_phases, over

if TYPE_CHECKING:
    from dino_ray.dino.extract import FeatureModel

VISIBLE = 4 / 255
"""Root mean square difference of a patch, of a range of 1, at which its drift counts half."""


SUSPECT = 0.2
"""Score from which a patch beside a flagged one counts as drifted too."""


@dataclass(frozen=True)
class Drift:
    """Of one tile."""

    cosines: Tensor
    """(n,): of all patches of all lattices."""
    lattices: tuple[Lattice, ...]
    scores: tuple[Tensor, ...]
    """For each lattice (rows, cols): drift over the threshold of alarm."""

    @property
    def worst(self) -> float:
        """The largest score; an alarm from 1 on."""
        return max(float(scores.max()) for scores in self.scores)

    def over_pixels(self) -> Tensor:
        """The scores over the tile's pixels (h, w): smooth, and of the lattices the worst."""
        spread = [lattice.spread(s[None])[0] for lattice, s in zip(self.lattices, self.scores, strict=True)]
        return torch.stack(spread).amax(0)

    def drifted(self) -> Tensor:
        """Where the tile has drifted, as 0 or 1 over its pixels (h, w).

        Flagged patches, and what hangs together with them and is suspect: a patch of which only a corner has changed
        raises no alarm by itself.
        """
        areas = []
        for lattice, scores in zip(self.lattices, self.scores, strict=True):
            suspect, grown = (scores >= SUSPECT).float()[None], (scores >= 1).float()[None]
            while True:
                wider = F.max_pool2d(grown, 3, stride=1, padding=1) * suspect
                if bool((wider == grown).all()):
                    break
                grown = wider
            areas.append(lattice.tiled(grown)[0])
        return torch.stack(areas).amax(0)


@dataclass(frozen=True)
class Reference:
    """A base that refined tiles of its place are compared with; its tokens are made once."""

    dino: FeatureModel
    pixels: Tensor
    """(3, h, w) in [0, 1], on the model's device."""
    lattices: tuple[Lattice, ...]
    tokens: tuple[Tensor, ...]

    @classmethod
    def of(cls, dino: FeatureModel, pixels: Tensor) -> Reference:
        lattices = over(pixels, dino.patch, judging_phases(dino.patch))
        with torch.no_grad():
            tokens = tuple(each.tokens(dino, pixels[None]) for each in lattices)
        return cls(dino, pixels.to(tokens[0].device), lattices, tokens)

    def drift(self, refined: Tensor, alarm: float) -> Drift:
        """Compare.

        Parameters
        ----------
        refined
            (3, h, w), nominally in [0, 1].
        alarm
            The visible drift from which on a patch is flagged; see ``calibration``.
        """
        refined = refined.to(self.pixels.device).clamp(0, 1)
        square = (refined - self.pixels).square().mean(0, keepdim=True)[None]
        seen, scores = [], []
        with torch.no_grad():
            for lattice, tokens in zip(self.lattices, self.tokens, strict=True):
                cosine = cosines(lattice.tokens(self.dino, refined[None]), tokens)[0]
                difference = lattice.mean(square)[0]
                seen.append(cosine.flatten())
                scores.append((1 - cosine) * difference / (difference + VISIBLE**2) / alarm)
        return Drift(torch.cat(seen), self.lattices, tuple(scores))
