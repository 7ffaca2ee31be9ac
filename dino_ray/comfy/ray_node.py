"""The node that sends images to a Ray cluster, or to the local GPUs, with no MODEL of ComfyUI's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dino_ray.comfy import images, widgets
from dino_ray.comfy.interrupts import Interrupts
from dino_ray.comfy.running import on_node, upscale_batch
from dino_ray.comfy.upscale_node import CATEGORY, NO_DINO, DinoUpscale, state_of
from dino_ray.config import UpscaleConfig

if TYPE_CHECKING:
    from dino_ray.comfy.watched import Progress
    from dino_ray.engine.protocol import Engine, ReplicaSpec

NUMBERS = ("denoise", "steps", "cfg", "tile", "overlap", "dino_strength")
"""Options that suit the model unless the node names them."""
TEXTS = ("prompt", "negative_prompt", "controlnet")
"""Options that are left out where they are empty."""


class DinoRayUpscale:
    """Upscaling where the GPUs are."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = DinoUpscale.RETURN_TYPES
    RETURN_NAMES = DinoUpscale.RETURN_NAMES
    OUTPUT_TOOLTIPS = DinoUpscale.OUTPUT_TOOLTIPS
    DESCRIPTION = (
        "Upscales every image of a batch on a Ray cluster or on the GPUs of this machine, with models that dino-ray "
        "loads there itself; shows the result as it lands."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs, as ComfyUI asks for them."""
        opened, text = widgets.open_number, widgets.text
        return {
            "required": {
                "image": ("IMAGE",),
                "address": text("address"),
                "model": text("model"),
                "scale_factor": widgets.number("scale", max=widgets.MOST_SCALE),
                "denoise": opened("denoise"),
                "tile": opened("tile", step=widgets.TILE_STEP),
                "overlap": opened("overlap", step=8),
                "sampler_name": widgets.choice("sampler"),
                "steps": opened("steps"),
                "cfg": opened("cfg", step=0.1),
                "dino_enabled": widgets.switch(
                    "Off: DINO neither guides nor judges, and nothing is held back."
                ),
                "dino_strength": opened("dino_strength"),
                "seed": widgets.number("seed", control_after_generate=True),
                "wrap": widgets.choice("wrap"),
            },
            "optional": {
                "prompt": text("prompt", multiline=True),
                "negative_prompt": text("negative_prompt", multiline=True),
                "controlnet": text("controlnet"),
                "base": widgets.choice("base"),
                "workers": (
                    "STRING",
                    {"default": "auto", "tooltip": UpscaleConfig.model_fields["workers"].description},
                ),
                "mask": ("MASK", {"tooltip": "What is transparent; it is enlarged as well."}),
                "dino": text("dino"),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(
        cls, model: str = "bundled", dino: str = "auto", controlnet: str = "", **others: Any
    ) -> str:
        """What the result depends on besides the graph: the files of the models it names."""
        from dino_ray.diffusion import finding

        return state_of(finding.located(model), dino, controlnet)

    def run(
        self, image: Any, mask: Any = None, node: str | None = None, **given: Any
    ) -> tuple[Any, Any, str, Any]:
        """Upscale a batch."""
        with on_node():
            from dino_ray.job import engine_for
            from dino_ray.resolve import resolve

            arrays = images.to_arrays(image, mask)
            config = UpscaleConfig.parse(options_of(**given))
            settings = resolve(config)
            interrupts = Interrupts()

            def engine(spec: ReplicaSpec, config: UpscaleConfig, most: int, progress: Progress) -> Engine:
                if config.address == "none":
                    from dino_ray.engine.local import LocalEngine

                    return LocalEngine(spec, interrupts)
                return engine_for(spec, config, most)

            made = upscale_batch(arrays, config, settings, engine, interrupts, node=node)
            return made.image, made.heat_map, made.report, made.mask


def options_of(
    *,
    scale_factor: float = 2.0,
    sampler_name: str = "euler",
    dino_enabled: bool = True,
    model: str = "bundled",
    seed: int = 0,
    dino: str = "auto",
    **given: Any,
) -> dict[str, Any]:
    """The config's options of a node's values: those that say nothing are left out.

    Without a model there is no noise and no DINO, so what a node always has of them says nothing either.
    """
    options: dict[str, Any] = {"scale": scale_factor, "model": model}
    for name in NUMBERS:
        low = widgets.open_number(name)[1]["min"]
        if (value := given.pop(name, low)) != low:
            options[name] = value
    for name in TEXTS:
        if value := given.pop(name, ""):
            options[name] = value
    options |= given
    if model == "none":
        return options
    options |= {"seed": seed, "sampler": sampler_name, "dino": dino}
    if not dino_enabled:
        options |= NO_DINO | {"dino": "auto"}
    return options
