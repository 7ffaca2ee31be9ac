"""Just enough of ComfyUI's modules for the nodes to run without it: a model of a line, a VAE of an average."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SCALE, CHANNELS = 8, 4
SAMPLERS = ["euler", "heun", "ddim", "fancy"]
SCHEDULERS = ["simple"]


class InterruptProcessingException(Exception):
    pass


class CONST:
    sigma_max = 1.0


class EPS:
    sigma_max = 14.0


class Network(nn.Module):
    """A block, so that there is something to interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Identity())])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


class Model:
    """Predicts, of what it sees at a sigma, x0 = x (1 - sigma / 3) + what it is told."""

    def __init__(self) -> None:
        self.diffusion_model = Network()
        self.asked: list[tuple[Tensor, float, float]] = []
        self.controls: list[Any] = []

    def concat_cond(self, **kwargs: Any) -> Tensor | None:
        return None

    def predict(self, x: Tensor, sigma: Tensor, conds: dict[str, Any], cfg: float) -> Tensor:
        self.asked.append((x.clone(), float(sigma[0]), cfg))
        self.controls.append(conds["positive"][0][1].get("control"))
        told = [float(conds[name][0][0].mean()) for name in ("positive", "negative")]
        guided = told[1] + cfg * (told[0] - told[1])
        return self.diffusion_model(x) * (1 - sigma.view(-1, 1, 1, 1) / 3) + guided


class Patcher:
    """What a graph calls MODEL."""

    load_device = torch.device("cpu")
    model_options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, sampling: Any = None, dimensions: int = 2, channels: int = CHANNELS) -> None:
        self.model = Model()
        self._objects = {
            "model_sampling": sampling or CONST(),
            "latent_format": SimpleNamespace(
                latent_dimensions=dimensions,
                latent_channels=channels,
                process_in=lambda x: 2 * x,
                process_out=lambda x: x / 2,
            ),
        }

    def get_model_object(self, name: str) -> Any:
        return self._objects[name]


class Vae:
    """A mean over 8 x 8 pixels, and what repeats it: grey in the fourth channel."""

    latent_dim, latent_channels = 2, CHANNELS
    device, vae_dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.first_stage_model = Decoder()
        self.process_output = lambda x: x.clamp(0, 1)

    def spacial_compression_encode(self) -> int:
        return SCALE

    spacial_compression_decode = spacial_compression_encode

    def encode(self, pixels: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(pixels.movedim(-1, 1), SCALE)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return self.process_output(self.first_stage_model.decode(latents)).movedim(1, -1)


class Decoder(nn.Module):
    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)


class Control:
    """A ControlNet of ComfyUI, as far as its image goes."""

    def __init__(self, hint: Tensor) -> None:
        self.cond_hint_original, self.previous_controlnet = hint, None
        self.extra_concat_orig: list[Tensor] = []

    def copy(self) -> Control:
        return Control(self.cond_hint_original)

    def set_previous_controlnet(self, control: Any) -> None:
        self.previous_controlnet = control


class CFGGuider:
    def __init__(self, patcher: Patcher) -> None:
        self.patcher = patcher

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.conds = {"positive": positive, "negative": negative}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def sample(
        self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, disable_pbar: bool, seed: int
    ) -> Any:
        return sampler.sample(self, sigmas, {}, None, noise, 2 * latent, None, disable_pbar)

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        return self.patcher.model.predict(x, sigma, self.conds, self.cfg)


class Fancy:
    """A sampler that is not written here: one jump to x0."""

    def sample(
        self, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, latent: Tensor, *a: Any
    ) -> Any:
        start = sigmas[0] * noise + (1 - sigmas[0]) * latent
        x0 = guider(start, sigmas[:1])
        callback(0, x0, start, 1)
        return x0


class KSampler:
    SAMPLERS, SCHEDULERS = SAMPLERS, SCHEDULERS

    def __init__(
        self, model: Patcher, steps: int, device: Any, sampler: str, scheduler: str, denoise: float, **o: Any
    ) -> None:
        top = model.get_model_object("model_sampling").sigma_max
        self.sigmas = torch.linspace(top, 0, steps + 1)


class ProgressBar:
    made: list[ProgressBar] = []  # noqa: RUF012

    def __init__(self, total: int, node_id: Any = None) -> None:
        self.total, self.node_id = total, node_id
        self.updates: list[tuple[float, Any]] = []
        self.made.append(self)

    def update_absolute(self, value: float, total: Any = None, preview: Any = None) -> None:
        self.updates.append((value, preview))


class Management:
    """The switch that ComfyUI's cancel button throws."""

    pressed = False

    @classmethod
    def processing_interrupted(cls) -> bool:
        return cls.pressed

    @classmethod
    def throw_exception_if_processing_interrupted(cls) -> None:
        if cls.pressed:
            cls.pressed = False
            raise InterruptProcessingException


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``import comfy.…`` find these."""

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    Management.pressed = False
    ProgressBar.made.clear()
    parts = {
        "samplers": module(
            "comfy.samplers", CFGGuider=CFGGuider, KSampler=KSampler, sampler_object=lambda name: Fancy()
        ),
        "model_sampling": module("comfy.model_sampling", CONST=CONST),
        "utils": module("comfy.utils", ProgressBar=ProgressBar),
        "model_management": module(
            "comfy.model_management",
            InterruptProcessingException=InterruptProcessingException,
            processing_interrupted=Management.processing_interrupted,
            throw_exception_if_processing_interrupted=Management.throw_exception_if_processing_interrupted,
            get_torch_device=lambda: torch.device("cpu"),
            free_memory=lambda size, device: None,
        ),
    }
    module("comfy", **parts)


def told(value: float, **options: Any) -> list[list[Any]]:
    """Conditioning."""
    return [[torch.full((1, 2, 3), value), options]]
