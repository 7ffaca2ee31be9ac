"""LoRAs into a model's weights, read and matched by diffusers' own loader of the model's pipeline."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from dino_ray.diffusion import lora_file
from dino_ray.diffusion.families.family import Configs, Family
from dino_ray.diffusion.lora_file import Lora
from dino_ray.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

log = logging.getLogger(__name__)

_FAILURES = (OSError, ValueError, RuntimeError, KeyError, AssertionError, IndexError, SafetensorError)
"""What diffusers' converters and peft raise where weights are damaged or of another model."""


@dataclass(frozen=True)
class Loras:
    """LoRAs for the components of one model."""

    loras: tuple[Lora, ...]
    pipeline: Any
    """The class of diffusers that the model is of, whose loader knows how LoRAs for it are named."""
    core: str
    config: Mapping[str, Any]
    """Of the core."""
    comfy_as_kohya: bool = False
    """As `LoraLayers` has it."""

    @classmethod
    def of(cls, loras: tuple[Lora, ...], family: Family, configs: Configs) -> Loras:
        """What applies LoRAs to components of a model of these configs."""
        import diffusers

        pipeline = getattr(diffusers, configs["index"]["_class_name"])
        as_kohya = family.lora is not None and family.lora.comfy_as_kohya
        return cls(loras, pipeline, family.core, configs[family.core], as_kohya)

    def into(self, part: str, model: Any) -> None:
        """Change a component as the LoRAs say: in its weights, at no cost for a step, unless those are quantised.

        Parameters
        ----------
        part : str
            Its name. What of the LoRAs is for others is left to them; components that no LoRA can change stay.
        model
            A module of diffusers or transformers.

        Raises
        ------
        JobError
            Where a LoRA is damaged or fits none of its layers.
        """
        if part not in self.pipeline._lora_loadable_modules:
            return
        weights: dict[str, float] = {}
        for i, lora in enumerate(self.loras):
            with _explained(lora), warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "Already found a `peft_config`"
                )  # it is meant to have several
                if self._attach(f"lora_{i}", lora, part, model):
                    weights[f"lora_{i}"] = lora.weight
        if weights:
            _settle(model, weights, of_diffusers=part == self.core)

    def _attach(self, name: str, lora: Lora, part: str, model: Any) -> bool:
        """One LoRA beside a component's layers, as the adapter of that name; False where it has nothing for it."""
        state, alphas, metadata = self._read(lora)
        prefix = f"{part}."
        own = {key: value for key, value in state.items() if key.startswith(prefix)}
        if part == self.core:
            components = tuple(f"{name}." for name in self.pipeline._lora_loadable_modules)
            foreign = [key for key in state if not key.startswith(components)]
            layers = {layer for layer, _ in model.named_modules()}
            named = zip(own, _layers(own, prefix), strict=True)
            unfit = [key for key, layer in named if layer not in layers]
            for key in unfit:
                del own[key]
            if (count := len(unfit) + len(foreign)) > 0:
                if not own:
                    raise ValueError(
                        f"none of its {count} weights fits a layer, such as {(unfit + foreign)[0]}"
                    )
                log.warning(
                    "%s: %d of its %d weights fit no layer of the model, and are left out (first: %s)",
                    *(lora.option, count, len(state), (unfit + foreign)[0]),
                )
        if not own:
            return False
        alphas = {key: value for key, value in (alphas or {}).items() if key.startswith(prefix)} or None
        if part == self.core:
            model.load_lora_adapter(
                own,
                prefix=part,
                network_alphas=alphas,
                adapter_name=name,
                metadata=metadata,
                low_cpu_mem_usage=True,  # or it would draw random numbers first
            )
        else:
            self.pipeline.load_lora_into_text_encoder(
                own,
                network_alphas=alphas,
                text_encoder=model,
                prefix=part,
                adapter_name=name,
                metadata=metadata,
                low_cpu_mem_usage=True,
            )
        return True

    def _read(
        self, lora: Lora
    ) -> tuple[dict[str, Tensor], Mapping[str, Any] | None, Mapping[str, Any] | None]:
        """Weights by component and layer; what scales them; peft's settings."""
        path = lora_file.local_path(lora)
        made = self.pipeline.lora_state_dict(
            (_renamed(lora, path) if self.comfy_as_kohya else None) or str(path),
            use_safetensors=True,  # and so no pickles
            local_files_only=True,
            return_lora_metadata=True,
            unet_config=SimpleNamespace(**self.config),
            **({"return_alphas": True} if _takes_alphas(self.pipeline) else {}),
        )
        state, *between, metadata = made
        return state, between[0] if between else None, metadata


def _renamed(lora: Lora, path: Path) -> dict[str, Tensor] | None:
    """Weights that ComfyUI has named, by the names of sd-scripts; None where others have."""
    from safetensors.torch import load_file

    state = load_file(path)
    if not any(key.startswith("diffusion_model.") for key in state):
        return None
    names = {key: lora_file.kohya_name(key) for key in state}
    if lost := [key for key, name in names.items() if name is None]:
        log.warning(
            "%s: %d of its %d weights can't be used here, and are left out (first: %s)",
            *(lora.option, len(lost), len(state), lost[0]),
        )
    return {name: state[key] for key, name in names.items() if name is not None}


def _takes_alphas(pipeline: Any) -> bool:
    import inspect

    return "return_alphas" in inspect.signature(pipeline.lora_state_dict).parameters


def _layers(state: dict[str, Tensor], prefix: str) -> list[str]:
    """Name of the layer that each weight of a LoRA is for, as its component names it."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    keys = {key.removeprefix(prefix): value for key, value in state.items()}
    if keys and "lora_A" not in next(iter(keys)):  # as diffusers tells them apart
        keys = convert_unet_state_dict_to_peft(keys)
    return [key.partition(".lora_")[0] for key in keys]


def _plain(model: Any) -> bool:
    """Whether a component's weights are numbers that can be added to, and not quantised, by whomever."""
    import torch

    return getattr(model, "hf_quantizer", None) is None and all(
        type(weight.data) is torch.Tensor and weight.is_floating_point() for weight in model.parameters()
    )


def _settle(model: Any, weights: Mapping[str, float], *, of_diffusers: bool) -> None:
    """Weigh the LoRAs of a component, and fuse them into its weights where those are plain."""
    from diffusers.loaders import lora_base
    from diffusers.utils import recurse_remove_peft_layers

    names = list(weights)
    if of_diffusers:
        model.set_adapters(names, list(weights.values()))
    else:
        lora_base.set_adapters_for_text_encoder(names, model, list(weights.values()))
    kind = type(model).__name__
    if not _plain(model):
        log.info(
            "%d LoRAs are computed beside %s's quantised weights, at some cost per step", len(names), kind
        )
        return
    if of_diffusers:
        model.fuse_lora(adapter_names=names)
        model.unload_lora()
    else:
        lora_base.fuse_text_encoder_lora(model, adapter_names=names)
        recurse_remove_peft_layers(model)
        del model.peft_config
    log.info("%d LoRAs are fused into %s's weights", len(names), kind)


@contextmanager
def _explained(lora: Lora) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(
            f"{lora.option}: can't be applied ({reason}); get it again, or the model that it is for"
        ) from error
