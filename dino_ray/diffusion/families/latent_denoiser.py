"""What the ``Denoiser`` of every diffusers family has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion.denoiser import MASK, Conditioning, Control, Description, Embeddings
from dino_ray.diffusion.vae import Place, TinyDecoder, Vae


@dataclass(frozen=True)
class ControlNet:
    """A network of diffusers that answers with what is to be added within the core."""

    model: Any
    place: Place


@dataclass(frozen=True)
class Loaded:
    """A model's components, as a family's ``build`` gets them."""

    models: Mapping[str, Any]
    """By component: ``transformer`` or ``unet``, ``vae`` and, where there is one, ``tiny_vae``."""
    places: Mapping[str, Place]
    """Of each of them."""

    def controlnet(self) -> ControlNet | None:
        """The ControlNet, if there is one."""
        model = self.models.get("controlnet")
        return (
            None
            if model is None
            else ControlNet(model.eval().requires_grad_(False), self.places["controlnet"])
        )

    def tiny(self) -> TinyDecoder | None:
        """The small decoder for guidance to look through, if there is one."""
        model = self.models.get("tiny_vae")
        return None if model is None else TinyDecoder(model, self.places["tiny_vae"])


class LatentDenoiser(ABC):
    """A network that predicts over latents of a VAE, speaking the ``Denoiser`` protocol.

    A family says what its network is asked and what it answers: ``_answer``, and ``_clean``. Its latents are mixed with
    noise as a rectified flow mixes them, ``(1 - sigma) x0 + sigma noise``, whatever the network was trained with; so
    ``sigma`` in [0, 1] means one thing for all.

    Latents are float32 at the border and through the sampler; the models run in their own dtype. Parameters are frozen,
    so nothing is recorded for autograd unless the caller's tensor asks for a gradient.

    Parameters
    ----------
    core
        The transformer or UNet.
    vae : Vae
    place : Place
        The core's.
    description : Description
    tiny : TinyDecoder, optional
        Without one, guidance looks through the VAE.
    controlnet : ControlNet, optional
    """

    def __init__(
        self,
        core: Any,
        vae: Vae,
        place: Place,
        description: Description,
        tiny: TinyDecoder | None = None,
        controlnet: ControlNet | None = None,
    ) -> None:
        self._core = core.eval().requires_grad_(False)
        self._vae = vae
        self._place = place
        self._description = description
        self._tiny = tiny
        self._controlnet = controlnet

    @property
    def description(self) -> Description:
        return self._description

    @property
    def device(self) -> torch.device:
        return self._place.device

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to latents: the posterior's mode, which draws nothing."""
        return self._vae.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels (B, 3, H, W), nominally in [0, 1] and not clipped."""
        return self._vae.decode(latents)

    def sketch(self, latents: Tensor) -> Tensor:
        """By the tiny decoder where there is one."""
        return self.decode(latents) if self._tiny is None else self._tiny.decode(latents)

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        """The model's own spacing from ``denoise`` in (0, 1] to 0, for latents of ``size`` (h, w)."""
        return torch.tensor(self._levels(denoise, steps, size), dtype=torch.float32)

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The straight line: ``(1 - sigma) latents + sigma noise``."""
        return (1 - sigma) * latents + sigma * noise

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """A step cache, where ``speed.accelerate`` has put one into the network, lives within."""
        if not self._caches_steps:
            yield
            return
        self._core._reset_stateful_cache()  # of a prediction that somebody asked for outside
        try:
            yield
        finally:
            self._core._reset_stateful_cache()

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """The clean latents that the network sees in ``x``, with guidance where the description says so.

        Raises
        ------
        ValueError
            Where the conditioning is not what the description asks for.
        """
        self._check(conditioning)
        with self._told("prompt"):
            answer = self._answer(x, sigma, conditioning.text, conditioning)
        if self._description.guidance == "classifier-free" and (scale := self._scale(conditioning)) != 1:
            with self._told("negative prompt"):
                negative = self._answer(x, sigma, self._negative(conditioning), conditioning)
            answer = self._guided(answer, negative, scale)
        return self._clean(x, sigma, answer)

    def save_memory(self) -> str | None:
        """Have the VAE work in smaller windows."""
        return self._vae.save_memory()

    def work_in_windows(self, side: int) -> None:
        """Have the VAE work in windows of ``side`` canvas_px from the start."""
        self._vae.work_in_windows(side)

    # ---- what a family says

    @abstractmethod
    def _levels(self, denoise: float, steps: int, size: tuple[int, int]) -> list[float]:
        """As ``sigmas``."""

    @abstractmethod
    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        """What the network says at ``x`` (B, C, h, w), told ``text``: the shape of ``x``, float32."""

    def _clean(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        """x0, of what the network said: here of a velocity, ``noise - x0``."""
        return x - sigma * answer

    def _guided(self, answer: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance: what was said for the prompt, away from what was said for the negative one."""
        return negative + scale * (answer - negative)

    def _negative(self, conditioning: Conditioning) -> Embeddings:
        """Embeddings of the negative prompt."""
        if not conditioning.negative:
            raise ValueError(
                f"{self._description.name} needs a negative prompt's embeddings: encode one, be it empty"
            )
        return conditioning.negative

    # ---- what they do it with

    @property
    def _caches_steps(self) -> bool:
        return bool(getattr(self._core, "is_cache_enabled", False))

    def _told(self, what: str) -> AbstractContextManager[None]:
        """Around an answer: a step cache compares it with earlier ones to the same question."""
        within: AbstractContextManager[None] = (
            self._core.cache_context(what) if self._caches_steps else nullcontext()
        )
        return within

    def _check(self, conditioning: Conditioning) -> None:
        if conditioning.dino is not None and self._description.dino_dim is None:
            raise ValueError(f"{self._description.name} takes no DINO tokens without an adapter")
        if conditioning.control is not None and self._controlnet is None:
            raise ValueError(f"{self._description.name} was loaded without a ControlNet")
        if (conditioning.reference is not None) != self._description.takes_reference:
            takes = "needs the base's latents as its reference"
            raise ValueError(
                f"{self._description.name} {takes if self._description.takes_reference else 'takes no reference'}"
            )

    def _acting(self, conditioning: Conditioning, sigma: float) -> Control | None:
        """What a ControlNet holds the tiles to at a noise level; None where it does nothing."""
        control = conditioning.control
        if control is None or not control.levels[0] <= sigma <= control.levels[1]:
            return None
        return control

    def _scale(self, conditioning: Conditioning) -> float:
        """The guidance scale."""
        scale = self._description.cfg if conditioning.cfg is None else conditioning.cfg
        assert scale is not None  # Description promises one wherever there is guidance
        return scale

    def _image(self, conditioning: Conditioning, name: str, batch: int) -> Tensor | None:
        """The image prompt's embedding of that name, for each tile of a batch; None where there is none."""
        value = conditioning.image.get(name)
        return None if value is None else self._place.put(value).expand(batch, *value.shape[1:])

    def _text(self, text: Embeddings, name: str, batch: int) -> Tensor:
        """The embedding of that name as the network takes it, for each tile of a batch."""
        if name not in text:
            raise ValueError(
                f"{self._description.name} needs the text embedding {name!r}: encode a prompt, be it empty"
            )
        value = text[name]
        value = value.to(self.device) if name.endswith(MASK) else self._place.put(value)
        return value.expand(batch, *value.shape[1:])
