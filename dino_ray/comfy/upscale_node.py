"""The node that refines by ComfyUI's own MODEL."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dino_ray.comfy import images, widgets
from dino_ray.comfy.interrupts import Interrupts
from dino_ray.comfy.running import borrowed, device_name, on_node, upsampler, upscale_batch
from dino_ray.config import UpscaleConfig
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from dino_ray.comfy.watched import Progress
    from dino_ray.comfy.wiring import Wired
    from dino_ray.engine.protocol import Engine, ReplicaSpec

CATEGORY = "image/upscaling"

DENOISE, STEPS, CFG = 0.25, 8, 5.0
"""Where the node starts, for it does not know the MODEL before it runs."""

TILE, OVERLAP = 1024, 128

MOST_THREADS = 256
"""Of ``--threads``."""


class DinoUpscale:
    """DINO-guided, seamless upscaling by the MODEL that is connected."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING", "MASK")
    RETURN_NAMES = ("image", "heat_map", "report", "mask")
    DESCRIPTION = (
        "Upscales every image of a batch in tiles that the connected MODEL refines, without seams; DINO holds each "
        "tile to what the image shows, finds what drifted and mends it."
    )
    OUTPUT_TOOLTIPS = (
        "The result.",
        "Where the result drifted from the image, and what was done about it; black where DINO compared nothing.",
        "What happened, as JSON.",
        "What is transparent in the result: the mask, enlarged as the image is.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs, as ComfyUI asks for them."""
        import comfy.samplers

        number, text, switch = widgets.number, widgets.text, widgets.switch
        return {
            "required": {
                "image": ("IMAGE",),
                "model": ("MODEL",),
                "vae": ("VAE",),
                "scale_factor": number("scale", max=widgets.MOST_SCALE),
                "denoise": number("denoise", default=DENOISE),
                "tile_width": number("tile", default=TILE, step=widgets.TILE_STEP),
                "tile_height": number("tile", default=TILE, step=widgets.TILE_STEP),
                "overlap": number("overlap", default=OVERLAP, step=8),
                "sampler_name": (
                    comfy.samplers.KSampler.SAMPLERS,
                    {
                        "default": "euler",
                        "tooltip": "euler, ddim and heun can be guided within their steps; all others are run by "
                        "ComfyUI's own code.",
                    },
                ),
                "scheduler": (
                    comfy.samplers.KSampler.SCHEDULERS,
                    {
                        "default": "simple",
                        "tooltip": "Spaces the noise levels, from denoise exactly down to 0.",
                    },
                ),
                "steps": number("steps", default=STEPS),
                "cfg": number("cfg", default=CFG, step=0.1),
                "dino_enabled": switch("Off: DINO neither guides nor judges, and nothing is held back."),
                "dino_strength": number("dino_strength", default=0.5),
                "seed": number("seed", control_after_generate=True),
                "wrap": widgets.choice("wrap"),
            },
            "optional": {
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "What each tile is told; or connect clip and type prompt."},
                ),
                "negative": ("CONDITIONING", {"tooltip": "What is to be kept out. With clip: nothing."}),
                "clip": ("CLIP", {"tooltip": "Encodes prompt, where positive is not connected."}),
                "prompt": text("prompt", multiline=True),
                "mask": ("MASK", {"tooltip": "What is transparent; it is enlarged as well."}),
                "dino": text("dino"),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, dino: str = "auto", **others: Any) -> str:
        """What the result depends on besides the graph: the files of a DINO model."""
        return state_of(dino)

    def run(
        self,
        image: Any,
        scale_factor: float,
        denoise: float,
        tile_width: int,
        tile_height: int,
        overlap: int,
        sampler_name: str,
        scheduler: str,
        steps: int,
        cfg: float,
        dino_enabled: bool,
        dino_strength: float,
        seed: int,
        wrap: str,
        model: Any = None,
        vae: Any = None,
        positive: Any = None,
        negative: Any = None,
        clip: Any = None,
        prompt: str = "",
        mask: Any = None,
        dino: str = "auto",
        node: str | None = None,
    ) -> tuple[Any, Any, str, Any]:
        """Upscale a batch."""
        with on_node():
            import torch

            from dino_ray.comfy.wiring import OURS, Wired, describe
            from dino_ray.resolve import resolve

            arrays = images.to_arrays(image, mask)
            if tile_width != tile_height:
                raise UsageError(
                    f"tile_width and tile_height: tiles are square, not {tile_width} x {tile_height}; "
                    "make them equal"
                )
            positive, negative = _told(positive, negative, clip, prompt, cfg)
            wired = Wired(model, vae, positive, negative, sampler_name, scheduler)
            interrupts = Interrupts()
            description = describe(wired, cfg=cfg)
            options: dict[str, Any] = {
                "scale": scale_factor,
                "address": "none",
                "wrap": wrap,
                "device": device_name(),
            }
            if denoise > 0:
                ours = OURS.get(sampler_name, "euler") if steps > 1 else "euler"
                options |= {"model": description.name, "denoise": denoise, "steps": steps, "sampler": ours}
                options |= {"cfg": cfg, "tile": tile_width, "overlap": overlap, "seed": seed, "dino": dino}
                options |= {"dino_strength": dino_strength} if dino_enabled else dict(NO_DINO)
                options["threads"] = min(MOST_THREADS, torch.get_num_threads())
                if not dino_enabled:
                    options["dino"] = "auto"
            else:  # nothing but the base is left
                options |= {"model": "none", "base": "net", "tile": tile_width}
            config = UpscaleConfig.parse(options)
            settings = resolve(config, loaded=description)
            notes = _notes(wired, dino_enabled, dino_strength) if denoise > 0 else ()
            with borrowed(settings.dino) as seeing:

                def engine(spec: ReplicaSpec, config: UpscaleConfig, most: int, progress: Progress) -> Engine:
                    from dino_ray.comfy.denoiser import ComfyDenoiser
                    from dino_ray.engine.local import LocalEngine

                    refines = spec.denoiser is not None
                    return LocalEngine(
                        replace(
                            spec,
                            upsampler=partial(upsampler, settings.base),
                            denoiser=partial(ComfyDenoiser, wired, description, interrupts, progress.step)
                            if refines
                            else None,
                            dino=(lambda: seeing) if seeing is not None else None,
                        ),
                        interrupts,
                    )

                made = upscale_batch(arrays, config, settings, engine, interrupts, node=node, notes=notes)
            return made.image, made.heat_map, made.report, made.mask


NO_DINO: dict[str, Any] = {"dino_strength": 0.0, "adaptive": 0.0, "verify": False}
"""Options that leave DINO out altogether."""


def state_of(*models: str) -> str:
    """What tells named models from their own earlier state."""
    from dino_ray.identity import of_weights

    return " ".join(of_weights(name) for name in models if name)


def _told(positive: Any, negative: Any, clip: Any, prompt: str, cfg: float) -> tuple[Any, Any]:
    """Both conditionings: as connected, else by the text encoder."""
    if positive is None and clip is None:
        raise UsageError("positive: nothing says what to show; connect a CONDITIONING, or clip and a prompt")

    def encode(text: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    if positive is None:
        positive = encode(prompt)
    if negative is None:
        if clip is not None:
            negative = encode("")
        elif cfg == 1:  # it is not asked
            negative = positive
        else:
            raise UsageError(
                "negative: cfg above 1 needs one; connect a CONDITIONING, or clip, or set cfg to 1"
            )
    return positive, negative


def _notes(wired: Wired, dino_enabled: bool, dino_strength: float) -> tuple[str, ...]:
    if wired.ours or not dino_enabled:
        return ()
    resting = ["the change map"] + (["guidance within steps (dino_strength)"] if dino_strength > 0 else [])
    return (
        f"sampler {wired.sampler} is run by ComfyUI's own code, whose steps can't be turned: {' and '.join(resting)} "
        "rest; verification, mending, colours and consistency do not. Use euler, ddim or heun for all of it.",
    )
