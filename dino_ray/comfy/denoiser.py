"""ComfyUI's MODEL, VAE and conditioning as a ``Denoiser``: what guidance, verification and merging know how to use.

Predictions are ComfyUI's own: each batch's steps run as a *sampler* within its ``CFGGuider``, which loads the models,
applies LoRAs, hooks and wrappers, and cleans up. So whatever a graph does to a MODEL holds here too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dino_ray.comfy import crops
from dino_ray.comfy.interrupts import Interrupts
from dino_ray.comfy.levels import Levels, tail
from dino_ray.comfy.wiring import Wired
from dino_ray.diffusion.denoiser import Conditioning, Description, Sampling
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class ComfyDenoiser:
    """Speaks the ``Denoiser`` protocol, and is its own ``Host``.

    Latents at its border are as the model's ``latent_format`` scales them, so that unit noise mixes with them.

    Parameters
    ----------
    wired
        Checked by `describe`.
    description
        From there.
    interrupts
        Asked before each of the model's blocks.
    on_step
        Called after each step.
    """

    def __init__(
        self,
        wired: Wired,
        description: Description,
        interrupts: Interrupts,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._wired = wired
        self._on_step = on_step
        self._description = description
        self._interrupts = interrupts
        self._format = wired.model.get_model_object("latent_format")
        self._frames = self._format.latent_dimensions == 3
        self._levels = Levels.of(wired.model.get_model_object("model_sampling"))
        self._ask: Callable[[Tensor, Tensor], Tensor] | None = None
        self._viewer: Any = None

    @property
    def description(self) -> Description:
        return self._description

    @property
    def device(self) -> torch.device:
        return torch.device(self._wired.model.load_device)

    # ---- pixels and latents

    def encode(self, pixels: Tensor) -> Tensor:
        """By ComfyUI's VAE, one tile at a time."""
        with self._interrupts.heeded():
            made = [self._wired.vae.encode(tile[None].movedim(1, -1)) for tile in pixels]
        latents = torch.cat([self._without_frames(each) for each in made]).to(self.device, torch.float32)
        scaled: Tensor = self._format.process_in(latents)
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """By ComfyUI's VAE, one tile at a time; it clips."""
        raw = self._with_frames(self._format.process_out(latents))
        with self._interrupts.heeded():
            made = [self._wired.vae.decode(tile[None]) for tile in raw]
        pixels = torch.cat([each.reshape(-1, *each.shape[-3:]) for each in made]).movedim(-1, 1)
        return pixels.to(self.device, torch.float32)

    def sketch(self, latents: Tensor) -> Tensor:
        """By a copy of the VAE whose weights can take part in a gradient: those that ComfyUI loads can't."""
        vae = self._wired.vae
        if self._viewer is None:
            with torch.inference_mode(False):
                viewer = copy.deepcopy(vae.first_stage_model).requires_grad_(False).eval()
                self._viewer = viewer.to(vae.device, vae.vae_dtype)
        raw = self._with_frames(self._format.process_out(latents))
        made = self._viewer.decode(raw.to(vae.device, vae.vae_dtype))
        pixels = vae.process_output(self._without_frames(made).float())
        return pixels.to(latents.device)  # type: ignore[no-any-return]

    # ---- steps

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        """The end of ComfyUI's schedule, as noise levels."""
        sigmas = tail(self._schedule, steps, self._levels.sigma(denoise))
        return torch.tensor([denoise, *map(self._levels.level, sigmas[1:])], dtype=torch.float32)

    def _schedule(self, steps: int) -> list[float]:
        import comfy.samplers

        wired = self._wired
        sampler = comfy.samplers.KSampler(
            wired.model,
            steps,
            "cpu",
            wired.sampler,
            wired.scheduler,
            1.0,
            model_options=wired.model.model_options,
        )
        return [float(sigma) for sigma in sampler.sigmas]

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The straight line: ``(1 - sigma) latents + sigma noise``."""
        return (1 - sigma) * latents + sigma * noise

    def sampling(self) -> AbstractContextManager[None]:
        """Nothing: ``host`` sets up what has to be around the steps."""
        return nullcontext()

    def host(self, sampling: Sampling, follow: Callable[[], Tensor]) -> Tensor:
        """Take the steps as a sampler within ComfyUI's guider: ours by ``follow``, others by its own code.

        Several tiles go one after another, for each has conditioning of its own; with ``follow`` there must be one.
        """
        if len(sampling.places) > 1:
            if self._wired.ours:
                raise UsageError("batch: tiles go one by one here; leave it at 1")
            return torch.cat([self.host(_only(sampling, i), follow) for i in range(len(sampling.places))])
        import comfy.samplers

        place, (h, w) = sampling.places[0], sampling.base.shape[-2:]
        size = (w * self._description.latent_scale, h * self._description.latent_scale)
        guider = comfy.samplers.CFGGuider(self._wired.model)
        guider.set_conds(
            *(
                crops.for_tile(each, place, size, closed=sampling.closed)
                for each in (self._wired.positive, self._wired.negative)
            )
        )
        guider.set_cfg(sampling.cfg if sampling.cfg is not None else self._description.cfg)
        steps = _Steps(self, sampling, follow)
        sigmas = torch.tensor([self._levels.sigma(level) for level in sampling.levels])
        with self._interrupts.heeded(), self._interrupts.within(self._wired.model.model.diffusion_model):
            guider.sample(
                self._with_frames(sampling.noise),
                self._with_frames(self._format.process_out(sampling.base)),
                steps,
                sigmas,
                disable_pbar=True,
                seed=_seed(sampling.seed, place),
            )
        assert steps.latents is not None
        return steps.latents

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """What ComfyUI's guider says, of the conditioning that the node was wired with."""
        assert self._ask is not None, "predictions are had within ComfyDenoiser.host"
        mixed = self._with_frames(x * self._levels.scale(sigma))
        x0 = self._ask(mixed, mixed.new_full((len(x),), self._levels.sigma(sigma)))
        self._on_step()
        return self._without_frames(x0).float()

    def save_memory(self) -> str | None:
        """None: ComfyUI's VAE goes over to tiles by itself, and its models to parts of them."""
        return None

    # ---- helpers

    @contextmanager
    def asking(self, ask: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Within, predictions are had from ``ask``, given latents and sigmas as ComfyUI has them."""
        self._ask = ask
        try:
            yield
        finally:
            self._ask = None

    def stepped(self) -> None:
        """A step of ComfyUI's own sampler is taken."""
        self._on_step()

    def own_sampler(self) -> Any | None:
        """ComfyUI's sampler of that name, where the steps are not taken here."""
        if self._wired.ours:
            return None
        import comfy.samplers

        return comfy.samplers.sampler_object(self._wired.sampler)

    def _with_frames(self, latents: Tensor) -> Tensor:
        return latents.unsqueeze(2) if self._frames else latents

    def _without_frames(self, latents: Tensor) -> Tensor:
        return latents.squeeze(2) if latents.ndim == 5 else latents


class _Steps:
    """A sampler, as ComfyUI's guider calls it."""

    def __init__(self, denoiser: ComfyDenoiser, sampling: Sampling, follow: Callable[[], Tensor]) -> None:
        self._denoiser, self._sampling, self._follow = denoiser, sampling, follow
        self.latents: Tensor | None = None
        """At the end: clean, to the last bit as they were made."""

    def sample(
        self,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        own = self._denoiser.own_sampler()
        if own is None:
            with self._denoiser.asking(lambda x, sigma: guider(x, sigma, **extra_args)):
                self.latents = self._follow()
            return self._denoiser._with_frames(self.latents)

        def after_step(step: int, *seen: Any) -> None:
            self._denoiser.stepped()
            self._sampling.before_step(step + 1)

        self._sampling.before_step(0)
        made: Tensor = own.sample(
            guider, sigmas, extra_args, after_step, noise, latent_image, denoise_mask, True
        )
        self.latents = self._denoiser._without_frames(made).float()
        return made


def _only(sampling: Sampling, i: int) -> Sampling:
    one = slice(i, i + 1)
    return replace(
        sampling,
        base=sampling.base[one],
        noise=sampling.noise[one],
        start=sampling.start[one],
        places=sampling.places[one],
    )


def _seed(seed: int, place: Sequence[float]) -> int:
    """For samplers that draw noise between steps: each place's own, whatever is worked on before it."""
    x, y = (round(part * 1_000_000) for part in place[:2])
    mixed: int = (seed + 0x9E3779B97F4A7C15 * (1_000_003 * y + x)) % 2**63
    return mixed
