"""What is asked of a source and what is known of it: small frozen values that travel everywhere."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dino_ray.raster.metadata import Metadata
from dino_ray.raster.store import Depth


@dataclass(frozen=True)
class ReadOptions:
    """How a file is to be read.

    Attributes
    ----------
    page
        Page of a TIFF, frame of an animation, counted from 1; None for the first, which is then said.
    to_srgb
        Whether pixels are converted to sRGB through the file's profile.
    """

    page: int | None = None
    to_srgb: bool = False


AS_IS = ReadOptions()
"""The first page, in its own colours."""


@dataclass(frozen=True)
class SourceInfo:
    """What an image is, upright: enough to plan a job and to label its output.

    Attributes
    ----------
    name
        File name, for messages and reports.
    width, height
        Size in source_px, after the file's orientation was applied.
    bands
        1 grey, 2 grey + alpha, 3 RGB, 4 RGBA; alpha is straight.
    dtype
        Depth of a sample.
    alpha
        Whether the last band is alpha.
    icc
        The ICC profile that the pixels are in, or None for sRGB.
    dpi
        Dots per inch in x and y, or None where the file does not say.
    metadata
        EXIF, XMP and IPTC as the file has them: of the source, not yet true of an output.
    """

    name: str
    width: int
    height: int
    bands: int
    dtype: Depth
    alpha: bool
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def colour_bands(self) -> int:
        """Number of bands without alpha: 1 or 3."""
        return self.bands - self.alpha

    @property
    def grey(self) -> bool:
        """Whether the image has one colour band."""
        return self.colour_bands == 1


def to_record(info: SourceInfo) -> dict[str, Any]:
    """A `SourceInfo` as JSON-able facts."""
    return {
        **asdict(replace(info, icc=None, metadata=Metadata())),
        "icc": _text(info.icc),
        "dpi": None if info.dpi is None else list(info.dpi),
        "metadata": {block.name: _text(getattr(info.metadata, block.name)) for block in fields(Metadata)},
    }


def from_record(record: dict[str, Any]) -> SourceInfo:
    """What `to_record` was given."""
    dpi = record["dpi"]
    return SourceInfo(
        **{
            **record,
            "icc": _block(record["icc"]),
            "dpi": dpi and (float(dpi[0]), float(dpi[1])),
            "metadata": Metadata(**{name: _block(text) for name, text in record["metadata"].items()}),
        }
    )


def _text(block: bytes | None) -> str | None:
    return None if block is None else base64.b64encode(block).decode("ascii")


def _block(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
