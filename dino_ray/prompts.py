"""What each tile is told: one prompt for all, or one per region of the source. No torch."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dino_ray.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x, y, width, height; source_px."""

MOST_PROMPTS = 64
"""Different ones in a file. Every replica holds the embeddings of all: of FLUX.1 8 MB each."""

SAMPLES = 32
"""Per side of a tile: how finely its share in a region is measured."""

CAPTION_SIDE, MOST_CAPTIONS = 1024, MOST_PROMPTS
"""source_px per side of what a captioner is shown at a time, and of how many such parts a source has at most: of a
larger source they are larger."""

Captioner = Callable[["np.ndarray"], str]
"""A part of the source, (h, w, 3) uint8 of at most ``CAPTION_SIDE`` a side, to what it shows."""


@dataclass(frozen=True)
class Region:
    """A prompt, and the area that it speaks of."""

    prompt: str
    rings: tuple[tuple[Point, ...], ...]
    """Polygons, source_px, filled where an odd number of them covers: outlines, and holes in them."""
    fractions: bool = False
    """The points are in parts of the source's width and height, not in source_px."""

    def touches(self, width: int, height: int) -> bool:
        """Whether its bounding box and a source of that size have anything in common."""
        points = [point for ring in self.rings for point in ring]
        unit = (width, height) if self.fractions else (1, 1)
        xs, ys = [x * unit[0] for x, _ in points], [y * unit[1] for _, y in points]
        return min(xs) < width and max(xs) > 0 and min(ys) < height and max(ys) > 0


def prompt_for(
    box: Box, size: tuple[int, int], regions: Sequence[Region], general: str, *, closed: bool = False
) -> str:
    """What a tile is told.

    Parameters
    ----------
    box
        The tile in the source, source_px.
    size
        Width and height of the source.
    regions
        The one that takes the largest part of the tile is taken, the first of equals.
    general
        Taken where the largest part of the tile lies in no region.
    closed
        The source goes on at its other edge, as panoramas do.
    """
    x, y, w, h = box
    around = (-size[0], 0, size[0]) if closed else (0,)
    shares = [sum(_share(region, (x + turn, y, w, h), size) for turn in around) for region in regions]
    best = max(range(len(shares)), key=shares.__getitem__, default=None)
    if best is None or shares[best] < max(1 - sum(shares), 1 / SAMPLES**2):
        return general
    return regions[best].prompt


def _share(region: Region, box: Box, size: tuple[int, int]) -> float:
    """Part of a box that lies in a region."""
    import numpy as np
    from PIL import Image, ImageDraw

    x, y, w, h = box
    unit = size if region.fractions else (1, 1)
    covered = np.zeros((SAMPLES, SAMPLES), bool)
    for ring in region.rings:
        mask = Image.new("1", (SAMPLES, SAMPLES))
        # A pixel of the mask is drawn where its middle is inside.
        points = [
            ((px * unit[0] - x) / w * SAMPLES - 0.5, (py * unit[1] - y) / h * SAMPLES - 0.5)
            for px, py in ring
        ]
        ImageDraw.Draw(mask).polygon(points, fill=1)
        covered ^= np.asarray(mask)
    return float(covered.mean())


def read_regions(path: str) -> tuple[Region, ...]:
    """Regions of a JSON file: GeoJSON whose coordinates are source_px and whose features have a property ``prompt``, or
    ``{"units": "px" or "fraction", "regions": [{"prompt": …, "box": [x, y, width, height]}, …]}``, with ``"polygon":
    [[x, y], …]`` in place of a box where the area is none.

    Raises
    ------
    UsageError
        If it can't be read, or is none of these; naming the region that is wrong.
    """
    where = f"--prompts {path}"
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UsageError(f"{where}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{where}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f'{where}: expected {{"regions": […]}} or GeoJSON, found a {type(content).__name__}')
    geojson = content.get("type") == "FeatureCollection"
    listed = content.get("features" if geojson else "regions")
    if not isinstance(listed, list) or not listed:
        raise UsageError(f'{where}: lists no regions; expected {{"regions": […]}}, or GeoJSON with features')
    units = content.get("units", "px")
    if units not in ("px", "fraction"):
        raise UsageError(f"{where}: units must be px or fraction, not {units!r}")
    if "crs" in content:
        raise UsageError(f"{where}: has a coordinate system (crs); give its polygons in pixels of the source")
    read = _feature if geojson else _plain
    regions = tuple(
        read(entry, f"{where}: region {i + 1}", units == "fraction") for i, entry in enumerate(listed)
    )
    if (count := len({region.prompt for region in regions})) > MOST_PROMPTS:
        raise UsageError(f"{where}: has {count} different prompts, {MOST_PROMPTS} are possible")
    return regions


def _plain(entry: Any, where: str, fractions: bool) -> Region:
    prompt = _prompt(entry, where)
    if ("box" in entry) == ("polygon" in entry):
        raise UsageError(f"{where}: needs either a box [x, y, width, height] or a polygon [[x, y], …]")
    if "polygon" in entry:
        return Region(prompt, (_ring(entry["polygon"], where),), fractions)
    box = entry["box"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) <= 0:
        raise UsageError(f"{where}: box must be [x, y, width, height] with sides above 0, not {box!r}")
    x, y, w, h = map(float, box)
    return Region(prompt, (((x, y), (x + w, y), (x + w, y + h), (x, y + h)),), fractions)


def _feature(entry: Any, where: str, fractions: bool) -> Region:
    properties = entry.get("properties") if isinstance(entry, dict) else None
    prompt = _prompt(properties, f"{where}: properties")
    geometry = entry.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise UsageError(f"{where}: its geometry must be a Polygon or a MultiPolygon, not {kind}")
    coordinates = geometry.get("coordinates")
    polygons = coordinates if kind == "MultiPolygon" else [coordinates]
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        raise UsageError(f"{where}: its geometry has no coordinates")
    return Region(prompt, tuple(_ring(ring, where) for rings in polygons for ring in rings), fractions)


def _prompt(entry: Any, where: str) -> str:
    prompt = entry.get("prompt") if isinstance(entry, Mapping) else None
    if not isinstance(prompt, str):
        raise UsageError(f"{where}: has no prompt, which must be a text")
    return prompt


def _ring(points: Any, where: str) -> tuple[Point, ...]:
    def is_point(point: Any) -> bool:
        return isinstance(point, list) and len(point) >= 2 and all(map(_is_number, point[:2]))

    if not isinstance(points, list) or len(points) < 3 or not all(map(is_point, points)):
        raise UsageError(f"{where}: a polygon must be three or more points [x, y]")
    return tuple((float(point[0]), float(point[1])) for point in points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---- captions


def find_captioner(name: str) -> Captioner:
    """The function that ``package.module:function`` names.

    Raises
    ------
    UsageError
        If it can't be imported, or is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--captioner {name}: can't be imported ({error}); give package.module:function, of a module that every "
            "worker can import"
        ) from error
    if not callable(found):
        raise UsageError(f"--captioner {name}: is no function")
    captioner: Captioner = found
    return captioner


def parts_to_caption(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Disjoint boxes (x, y, w, h), source_px, that cover a source: at most ``MOST_CAPTIONS``, as square as can be."""
    side = float(CAPTION_SIDE)
    while math.ceil(width / side) * math.ceil(height / side) > MOST_CAPTIONS:
        side *= 1.1
    columns, rows = math.ceil(width / side), math.ceil(height / side)
    xs = [width * i // columns for i in range(columns + 1)]
    ys = [height * i // rows for i in range(rows + 1)]
    return [(xs[i], ys[j], xs[i + 1] - xs[i], ys[j + 1] - ys[j]) for j in range(rows) for i in range(columns)]


def captioned(
    captioner: Captioner,
    look: Callable[[int, int, int, int], np.ndarray],
    width: int,
    height: int,
    general: str,
) -> tuple[Region, ...]:
    """Regions with what a captioner sees in them, each followed by the general prompt.

    Parameters
    ----------
    look
        A box of the source (x, y, w, h), source_px, as (h', w', 3) uint8 of at most ``CAPTION_SIDE`` a side.

    Raises
    ------
    TypeError
        If it answers with no text.
    """
    regions = []
    for x, y, w, h in parts_to_caption(width, height):
        caption = captioner(look(x, y, w, h))
        if not isinstance(caption, str):
            raise TypeError(f"the captioner answered with a {type(caption).__name__}, not with a text")
        prompt = ", ".join(text for text in (caption.strip(), general) if text)
        corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
        regions.append(Region(prompt, (tuple((float(a), float(b)) for a, b in corners),)))
    return tuple(regions)
