"""A job as a node runs it: a batch of images in, results, heat maps and a report out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from dino_ray.comfy import images, recent
from dino_ray.comfy.interrupts import Interrupts
from dino_ray.comfy.watched import Progress, Watched
from dino_ray.comfy.widgets import as_on_node
from dino_ray.config import UpscaleConfig
from dino_ray.errors import DinoRayError

if TYPE_CHECKING:
    import numpy as np

    from dino_ray.dino.loading import Dino
    from dino_ray.engine.protocol import Engine, ImageTask, ReplicaSpec
    from dino_ray.opening import Job
    from dino_ray.raster.canvas import Canvas
    from dino_ray.report.run import UpscaleReport
    from dino_ray.request import Image
    from dino_ray.settings import Settings
    from dino_ray.upsample import Upsampler


class NodeError(Exception):
    """What ComfyUI shows on the node: one sentence."""


@contextmanager
def on_node() -> Iterator[None]:
    """Errors that are meant for the user, said by the node's own names, without what led to them."""
    try:
        yield
    except DinoRayError as error:
        raise NodeError(as_on_node(str(error))) from None
    except ModuleNotFoundError as error:
        raise NodeError(
            f"the package {error.name} is missing: install dino-ray's requirements.txt into ComfyUI's Python"
        ) from None


@dataclass(frozen=True)
class Outcome:
    """What a node returns."""

    image: Any
    """IMAGE."""
    mask: Any
    """MASK: what is transparent."""
    heat_map: Any
    """IMAGE: one map for each image; black where DINO compared nothing."""
    report: str
    """JSON."""


def upscale_batch(
    arrays: Sequence[np.ndarray],
    config: UpscaleConfig,
    settings: Settings,
    make_engine: Callable[[ReplicaSpec, UpscaleConfig, int, Progress], Engine],
    interrupts: Interrupts,
    *,
    node: str | None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Upscale a batch, one image after another on the same replicas.

    Parameters
    ----------
    make_engine
        As ``job.MakeEngine``, with the node's progress.
    node
        ComfyUI's id of the node, where progress shows.
    notes
        Sentences that go into the report.
    """
    from dino_ray.job import upscale_images
    from dino_ray.plan.geometry import Rect
    from dino_ray.request import check_array

    jobs = [check_array(pixels, settings, "image") for pixels in arrays]
    progress = Progress(sum(job.grid.n_tiles for job in jobs), settings.steps, node)
    made: list[np.ndarray] = []
    maps: list[Any] = []
    reports: list[UpscaleReport] = []

    def draw(job: Job, report: UpscaleReport) -> dict[str, str]:
        from dino_ray.report.heatmap import heat_map

        assert report.fidelity is not None
        maps.append(
            heat_map(job.canvas, job.image.grid, job.findings.ledger, report.fidelity, report.poisoned)
        )
        return {}

    def finished(image: Image, canvas: Canvas | None, report: UpscaleReport) -> None:
        assert canvas is not None
        made.append(canvas.read(Rect(0, 0, canvas.width, canvas.height)))
        if len(maps) < len(made):  # nothing was compared
            from PIL import Image as Pictures

            maps.append(Pictures.new("RGB", progress.preview_size))
        reports.append(report)

    def engine(spec: ReplicaSpec, config: UpscaleConfig, most: int) -> Engine:
        inner = make_engine(spec, config, most, progress)
        key = _guide_key(settings) if config.address == "none" else None
        watched: Any = Watched(inner, progress, interrupts, key)
        return watched  # type: ignore[no-any-return]

    upscale_images(
        jobs,
        config,
        settings,
        lambda event: None,
        finished,
        time.monotonic(),
        strict=True,
        draw=draw if settings.verify else None,
        make_engine=engine,
    )
    image, mask = images.to_image(made)
    said = {"notes": list(notes), "images": [asdict(report) for report in reports]}
    return Outcome(
        image, mask, images.from_pictures(maps), json.dumps(said, indent=2, ensure_ascii=False, default=str)
    )


def _guide_key(settings: Settings) -> Callable[[ImageTask], Any]:
    """All that a guide depends on."""
    asked = (
        settings.dino,
        settings.dino_strength > 0 and settings.dino_tokens,
        settings.adaptive > 0,
        settings.consistency > 0,
        settings.model.takes_text if settings.model else False,
        settings.prompt,
        settings.negative_prompt,
        settings.model_place,
    )

    def key(task: ImageTask) -> Any:
        from dino_ray.plan.geometry import Rect

        whole = task.source.read(Rect(0, 0, *task.size))
        return (asked, recent.fingerprint(whole), task.grid.wrap)

    return key


# ---- models of ours, beside ComfyUI's


def device_name() -> str:
    """Where ComfyUI computes, as ``--device`` has it: what is neither a CPU nor CUDA leaves us the CPU."""
    import comfy.model_management

    kind = str(comfy.model_management.get_torch_device().type)
    return "cuda" if kind == "cuda" else "cpu"


@cache
def _dino_at_rest(name: str) -> Dino:
    """A DINO model in host memory, loaded once."""
    import torch

    from dino_ray.dino import loading

    with torch.inference_mode(False):  # its weights take part in gradients
        return loading.load(name, "cpu")


@contextmanager
def borrowed(name: str | None) -> Iterator[Dino | None]:
    """A DINO model on ComfyUI's device, for which ComfyUI makes room; it goes back to host memory at the end."""
    if name is None:
        yield None
        return
    import comfy.model_management
    import torch

    resting = _dino_at_rest(name)
    device = torch.device(device_name())
    if device.type == "cpu":
        yield resting
        return
    device = comfy.model_management.get_torch_device()
    size = sum(p.numel() * p.element_size() for p in resting.model.parameters())
    comfy.model_management.free_memory(2 * size, device)
    with torch.inference_mode(False):
        resting.model.to(device)
    try:
        yield replace(resting, device=device)
    finally:
        with torch.inference_mode(False):
            resting.model.to("cpu")


@cache
def upsampler(base: str) -> Upsampler:
    """What makes the base, and keeps the last of it; a net of a megabyte, which stays where it is."""
    import torch

    from dino_ray import upsample

    if base == "lanczos":
        return upsample.Lanczos()
    with torch.inference_mode(False):
        return recent.RememberedBase(upsample.load_net(device_name()), base)
