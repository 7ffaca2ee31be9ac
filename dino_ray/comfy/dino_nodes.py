"""Nodes for those who compose: what DINO sees in an image, and how far one image is from another in its eyes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_ray.comfy import images, recent, widgets
from dino_ray.comfy.interrupts import Interrupts
from dino_ray.comfy.running import borrowed, on_node
from dino_ray.comfy.upscale_node import CATEGORY, state_of
from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect

if TYPE_CHECKING:
    from dino_ray.dino.features import FeatureMap
    from dino_ray.dino.loading import Dino

COMPONENTS = 3
"""Of the features, shown as red, green and blue."""

SIDE = 518
"""Of the windows that are compared, px: the largest side that DINOv2 was trained at."""


class DinoFeatures:
    """What DINO sees."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("DINO_FEATURES", "IMAGE", "MASK")
    RETURN_NAMES = ("features", "picture", "structure")
    DESCRIPTION = (
        "DINO features of every image of a batch; a picture of them, in which what looks alike has like colours; and a "
        "mask of where structure is (edges of things, faces, lettering) rather than texture."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs, as ComfyUI asks for them."""
        return {"required": {"image": ("IMAGE",), "dino": widgets.text("dino")}}

    @classmethod
    def IS_CHANGED(cls, dino: str = "auto", **others: Any) -> str:
        """The state of the DINO model's files."""
        return state_of(dino)

    def run(self, image: Any, dino: str) -> tuple[Any, Any, Any]:
        """Extract."""
        with on_node(), borrowed(named(dino)) as model:
            assert model is not None
            import torch

            found, pictures, masks = [], [], []
            interrupts = Interrupts()
            for pixels in images.to_arrays(image):
                features, structure = _features(model, pixels, interrupts)
                found.append(features)
                size = pixels.shape[1], pixels.shape[0]
                pictures.append(_enlarged(_principal(features.fine.tokens), size))
                masks.append(_enlarged(structure, size)[..., 0])
            batch = np.stack([np.rint(np.clip(each, 0, 1) * 65535).astype(np.uint16) for each in pictures])
            return found, images.to_image(list(batch))[0], torch.from_numpy(np.stack(masks)).clamp(0, 1)


class DinoFidelity:
    """How true one image is to another."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "MASK", "STRING", "FLOAT")
    RETURN_NAMES = ("heat_map", "drift", "report", "cosine")
    DESCRIPTION = (
        "Compares a result with the image it was made of, patch by patch, as DINO sees them: where it drifted, from 0 "
        "over 0.5, at which dino-ray raises an alarm, to 1, twice that."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs, as ComfyUI asks for them."""
        what = {"tooltip": "Of any size; it is enlarged to the result's."}
        return {"required": {"source": ("IMAGE", what), "result": ("IMAGE",), "dino": widgets.text("dino")}}

    @classmethod
    def IS_CHANGED(cls, dino: str = "auto", **others: Any) -> str:
        """The state of the DINO model's files."""
        return state_of(dino)

    def run(self, source: Any, result: Any, dino: str) -> tuple[Any, Any, str, float]:
        """Compare."""
        with on_node(), borrowed(named(dino)) as model:
            assert model is not None
            import torch

            from dino_ray.report.heatmap import coloured

            sources, results = images.to_arrays(source), images.to_arrays(result)
            if len(sources) not in (1, len(results)):
                raise UsageError(
                    f"source: has {len(sources)} images, the result {len(results)}; connect one, or as many"
                )
            interrupts = Interrupts()
            sources = sources * len(results) if len(sources) == 1 else sources
            compared = [
                _drift(model, before, after, interrupts)
                for before, after in zip(sources, results, strict=True)
            ]
            maps = np.stack([np.rint(coloured(drift * 255)).astype(np.uint8) for drift, _ in compared])
            cosines = [numbers for _, numbers in compared]
            mean = float(np.mean([numbers["cosine_mean"] for numbers in cosines]))
            report = json.dumps({"dino": model.name, "images": cosines}, indent=2)
            drifts = torch.from_numpy(np.stack([drift for drift, _ in compared]))
            return images.to_image(list(maps))[0], drifts, report, mean


def named(dino: str) -> str:
    """The DINO model that ``auto`` means here: the good one where it is cached, else the bundled one."""
    from dino_ray.dino import loading
    from dino_ray.dino_settings import GOOD_DINO

    if dino != "auto":
        return dino
    return GOOD_DINO if loading.is_cached(GOOD_DINO) else loading.BUNDLED


def _features(model: Dino, pixels: np.ndarray, interrupts: Interrupts) -> tuple[FeatureMap, np.ndarray]:
    """Features of an image, and where structure is: (rows, cols, 1)."""
    import torch

    from dino_ray.dino import thresholds
    from dino_ray.dino.extract import extract
    from dino_ray.dino.structure import structure

    colours = _colours(pixels)
    height, width = colours.shape[:2]

    def read(rect: Rect) -> np.ndarray:
        interrupts.raise_if_seen()
        rows = np.clip(np.arange(rect.y, rect.y1), 0, height - 1)
        cols = np.clip(np.arange(rect.x, rect.x1), 0, width - 1)
        window: np.ndarray = colours[rows][:, cols]
        return window

    def make() -> tuple[FeatureMap, np.ndarray]:
        with torch.inference_mode():
            calibration = thresholds.of(model, read, width, height)
            features = extract(model, read, width, height)
            return features, structure(features.fine, calibration).tokens.astype(np.float32)

    made: tuple[FeatureMap, np.ndarray] = recent.guides.get(
        ("features", model.name, recent.fingerprint(colours)), make
    )
    return made


def _drift(
    model: Dino, before: np.ndarray, after: np.ndarray, interrupts: Interrupts
) -> tuple[np.ndarray, dict[str, float]]:
    """Drift over the result's pixels, in [0, 1] of twice the alarm; and the cosines over all of it."""
    import torch

    from dino_ray.dino import thresholds
    from dino_ray.dino.drift import Reference

    result = _colours(after)
    h, w = result.shape[:2]
    base = np.clip(_enlarged(_colours(before), (w, h)), 0, 1)
    drift, cosines = np.zeros((h, w), np.float32), []

    def read(rect: Rect) -> np.ndarray:
        rows, cols = (
            np.clip(np.arange(rect.y, rect.y1), 0, h - 1),
            np.clip(np.arange(rect.x, rect.x1), 0, w - 1),
        )
        window: np.ndarray = base[rows][:, cols]
        return window

    with torch.inference_mode():
        alarm = thresholds.of(model, read, w, h).alarm
        for y, x in np.ndindex(-(-h // SIDE), -(-w // SIDE)):
            interrupts.raise_if_seen()
            # The last windows reach back, so that none is a sliver.
            y0, x0 = max(0, min(y * SIDE, h - SIDE)), max(0, min(x * SIDE, w - SIDE))
            window = slice(y0, y0 + SIDE), slice(x0, x0 + SIDE)
            shown, made = (
                torch.from_numpy(np.ascontiguousarray(each[window])).permute(2, 0, 1).to(model.device)
                for each in (base, result)
            )
            found = Reference.of(model, shown).drift(made, alarm)
            drift[window] = np.maximum(drift[window], found.over_pixels().float().cpu().numpy() / 2)
            cosines.append(found.cosines.float().cpu().numpy())
    every = np.concatenate(cosines)
    numbers = {
        "cosine_mean": round(float(every.mean()), 5),
        "cosine_p10": round(float(np.quantile(every, 0.1)), 5),
        "cosine_min": round(float(every.min()), 5),
        "drifted": round(float((drift >= 0.5).mean()), 5),
    }
    return drift.clip(0, 1), numbers


def _colours(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32 in [0, 1]."""
    from dino_ray.engine.bands import rgb
    from dino_ray.upsample import unit_range

    return rgb(unit_range(pixels))


def _enlarged(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, c), resized to ``size`` (w, h)."""
    import torch
    from torch.nn import functional

    if pixels.shape[1::-1] == size:
        return pixels
    planes = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None]
    made = functional.interpolate(planes, size[::-1], mode="bicubic", antialias=True)
    enlarged: np.ndarray = made[0].permute(1, 2, 0).numpy()
    return enlarged


def _principal(tokens: np.ndarray) -> np.ndarray:
    """The first principal components of tokens (rows, cols, dim), each in [0, 1]."""
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float32)
    centred = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    shown = centred @ vectors[:, : -COMPONENTS - 1 : -1]
    low, high = np.quantile(shown, (0.02, 0.98), axis=0)
    scaled = (shown - low) / np.maximum(high - low, 1e-6)
    shown_as: np.ndarray = np.clip(scaled, 0, 1).astype(np.float32).reshape(*tokens.shape[:2], COMPONENTS)
    return shown_as
