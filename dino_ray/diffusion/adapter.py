"""The trainable route of DINO into a FLUX model: tokens of the source as more of what stands in the text's place.

As IP-Adapter (Ye et al. 2023, arXiv:2308.06721) does with CLIP's, a small network turns an encoder's tokens into tokens
of the frozen model's own width. Here they are many, each with the place in the tile that it describes, and they
enter the joint attention that FLUX has anyway instead of one of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from dino_ray.diffusion.adapter_file import AdapterFacts
from dino_ray.diffusion.denoiser import DinoTokens
from dino_ray.files import write_whole

FIRST_SCALE = 0.1
"""What the last layer is scaled by before training: tokens start nearly alike, and still pass a gradient on."""


class DinoAdapter(nn.Module):
    """DINO tokens (…, channels) to tokens of a transformer's text (…, width); both float32.

    Parameters
    ----------
    facts : AdapterFacts
        Its sizes, and what it is for. Weights are random until trained or loaded.
    """

    def __init__(self, facts: AdapterFacts) -> None:
        super().__init__()
        self.facts = facts
        self.norm = nn.LayerNorm(facts.channels)
        self.inner = nn.Linear(facts.channels, facts.hidden)
        self.outer = nn.Linear(facts.hidden, facts.width)
        with torch.no_grad():
            self.outer.weight *= FIRST_SCALE
            self.outer.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        made: Tensor = self.outer(F.gelu(self.inner(self.norm(tokens))))
        return made


Adapter = Callable[[Tensor], Tensor]
"""A ``DinoAdapter``, or what wraps one in training."""


def adapted(dino: DinoTokens | None, adapter: Adapter | None, device: torch.device) -> DinoTokens | None:
    """What a transformer is to attend to: float32 features on its device, through the adapter where there is one.

    Raises
    ------
    ValueError
        If the features have another number of channels than the adapter reads.
    """
    if dino is None:
        return None
    features = dino.features.to(device, torch.float32)
    return replace(dino, features=features if adapter is None else adapter(features))


def save(adapter: DinoAdapter, path: str | Path) -> None:
    """Write an adapter and its facts, beside its place first and then renamed.

    Raises
    ------
    UsageError
        If it can't be written there.
    """
    weights = {
        name: weight.detach().float().cpu().contiguous() for name, weight in adapter.state_dict().items()
    }
    write_whole(path, serialised(weights, adapter.facts.metadata()), "adapter")


def load(path: str | Path, facts: AdapterFacts, device: str) -> DinoAdapter:
    """The adapter of a file that ``adapter_file.describe`` has found whole; frozen, for inference."""
    adapter = DinoAdapter(facts)
    adapter.load_state_dict(load_file(Path(path).expanduser()))
    return adapter.eval().requires_grad_(False).to(device)
