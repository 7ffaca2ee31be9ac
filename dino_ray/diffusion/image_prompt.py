"""What an image prompt's model sees in a picture, and the place in a diffusion model where it says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dino_ray.diffusion import image_prompt_file
from dino_ray.diffusion.components import PartFiles, load_model, load_tokenizer
from dino_ray.diffusion.denoiser import Embeddings
from dino_ray.diffusion.families.family import Configs
from dino_ray.diffusion.families.stock_text import bare_pipeline, quiet
from dino_ray.diffusion.image_prompt_file import ImagePrompt
from dino_ray.diffusion.storage import Kept
from dino_ray.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class ImageEncoder:
    """Pictures to embeddings, by the names that the families know them by.

    ``image_tokens`` (B, tokens, width) of Redux, to stand behind the prompt's. Of an IP-Adapter ``image_embeds``, and
    for no picture at all ``negative_image_embeds``: (B, 1, width), or (B, 1, patches, width) where it looks closer.

    Parameters
    ----------
    prompt : ImagePrompt
        Whose files are read.
    device, kept
        Where and in what precision it computes.

    Raises
    ------
    JobError
        Where its weights are damaged.
    """

    def __init__(self, prompt: ImagePrompt, device: str, kept: Kept) -> None:
        import transformers

        self._prompt = prompt
        files = image_prompt_file.files(prompt)
        redux = prompt.kind == "redux"
        vision = "SiglipVisionModel" if redux else "CLIPVisionModelWithProjection"
        self._encoder = _load("image_encoder", "transformers", vision, files, kept, device)
        self._embedder = None
        if redux:
            self._embedder = _load("image_embedder", "diffusers", "ReduxImageEncoder", files, kept, device)
            extractor = PartFiles(
                "feature_extractor",
                "transformers",
                "SiglipImageProcessorPil",  # the others need torchvision
                files["feature_extractor"],
            )
            self._processor = load_tokenizer(extractor)
        else:
            side = self._encoder.config.image_size
            self._processor = transformers.CLIPImageProcessorPil(size=side, crop_size=side)

    def __call__(self, pictures: Sequence[np.ndarray]) -> Embeddings:
        """Embeddings of pictures, each (h, w, 3) in [0, 1]; float32, on the encoder's device.

        CLIP sees the square in a picture's middle; SigLIP all of it, as a square.
        """
        from PIL import Image

        levels = [np.uint8(np.round(np.clip(picture, 0, 1) * 255)) for picture in pictures]
        seen = self._processor([Image.fromarray(each) for each in levels], return_tensors="pt")
        pixels = seen.pixel_values.to(self._encoder.device, self._encoder.dtype)
        with torch.no_grad():
            if self._embedder is not None:
                tokens: Tensor = self._embedder(self._encoder(pixels).last_hidden_state).image_embeds
                return {"image_tokens": tokens.float() * self._prompt.scale}
            if self._prompt.kind == "ip-adapter":
                embeds = self._encoder(pixels).image_embeds
                nothing = torch.zeros_like(embeds)
            else:
                embeds, nothing = (self._patches(each) for each in (pixels, torch.zeros_like(pixels)))
        return {"image_embeds": embeds.float()[:, None], "negative_image_embeds": nothing.float()[:, None]}

    def _patches(self, pixels: Tensor) -> Tensor:
        """What the layer before the last says of each."""
        found: Tensor = self._encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return found


def _load(part: str, library: str, cls: str, files: Mapping[str, Path], kept: Kept, device: str) -> Any:
    return load_model(PartFiles(part, library, cls, files[part]), kept, device).eval().requires_grad_(False)


def attach(prompt: ImagePrompt, part: str, core: Any, configs: Configs) -> None:
    """Have a UNet or transformer attend to what the encoder sees; Redux needs nothing of it.

    Parameters
    ----------
    part
        Its name as a component.

    Raises
    ------
    JobError
        Where the adapter is damaged, or does not fit it.
    """
    if prompt.kind == "redux":
        return
    file = image_prompt_file.files(prompt)["adapter"]
    with _explained(prompt), quiet():
        pipeline = bare_pipeline(configs, {part: core})
        # Loaders of UNets and of transformers name the encoder differently; it is loaded apart, by who looks.
        pipeline.load_ip_adapter(
            str(file.parent),
            subfolder="",
            weight_name=file.name,
            local_files_only=True,
            image_encoder_folder=None,
            image_encoder_pretrained_model_name_or_path=None,
        )
        if lacking := next((name for name, value in core.named_parameters() if value.is_meta), None):
            raise ValueError(f"it has no weights for {lacking}")
        pipeline.set_ip_adapter_scale(prompt.scale)


@contextmanager
def _explained(prompt: ImagePrompt) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(
            f"--image-prompt {prompt.location}: can't be applied ({reason}); get it again, or the model that it is for"
        ) from error
