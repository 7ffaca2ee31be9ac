"""What a family of formats can hold, what may be asked of it, and what a request comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dino_ray.errors import UsageError
from dino_ray.files import check_place
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export.place import replace_file
from dino_ray.raster.metadata import Metadata
from dino_ray.raster.store import Depth

# libvips' own limit on a side, VIPS_MAX_COORD; the formats without a smaller one share it, so that what is
# written here can be read here.
LIBVIPS_MAX_SIDE = 100_000_000

# Upscaling is about detail: the loss is below what can be seen.
DEFAULT_QUALITY = 95
_QUALITIES = range(1, 101)

# 8,192²: a viewer decodes less than that at once, and programs that know no pyramids see one page.
PYRAMID_FROM_PIXELS = 2**26

# Shares of the pixels' bytes that compressed photographs stay below: the finest quality of JPEG takes a third or so,
# and what is lossless never takes much more than it was given.
_MOST_OF_LOSSY, _MOST_OF_LOSSLESS = 0.5, 1.05
# A quarter, a sixteenth, and so on.
_PYRAMID_GROWTH = 4 / 3

_DTYPES: dict[int, Depth] = {8: "uint8", 16: "uint16"}
_BITS = {dtype: bits for bits, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class ExportOptions:
    """What a user may ask of an output file; None stands for what suits the format and the size.

    Attributes
    ----------
    format
        A key of `known_formats`, for paths whose suffix does not tell.
    quality
        1 to 100, of lossy compressions; 95 if not given.
    compression
        One of the format's own, which `compressions` lists.
    depth
        Bits of a sample, 8 or 16; the source's if not given and the format holds them.
    pyramid
        Whether a TIFF carries reduced copies of itself; if not given, where it is above `PYRAMID_FROM_PIXELS`.
    """

    format: str | None = None
    quality: int | None = None
    compression: str | None = None
    depth: Literal[8, 16] | None = None
    pyramid: bool | None = None


@dataclass(frozen=True)
class Labels:
    """What is written beside the pixels.

    Attributes
    ----------
    icc
        The profile that the pixels are in, or None for sRGB.
    dpi
        Dots per inch of the output in x and y, or None where the source did not say.
    metadata
        EXIF, XMP and IPTC, true of the output.
    """

    icc: bytes | None
    dpi: tuple[float, float] | None
    metadata: Metadata


@dataclass(frozen=True)
class Settings:
    """Options with nothing left open: the name of a compression, its quality if it is lossy, pyramid or not."""

    compression: str
    quality: int
    pyramid: bool


@dataclass(frozen=True)
class Compression:
    """One way in which a format packs pixels.

    Attributes
    ----------
    name
        As ``--compression`` spells it.
    lossy
        Whether it loses something, and so has a quality.
    depths
        Sample depths that it holds.
    bands
        Numbers of bands that it holds.
    max_pixels
        Most pixels that it is sure to hold, if it is not only sides that are limited.
    """

    name: str
    lossy: bool = False
    depths: tuple[Depth, ...] = ("uint8", "uint16")
    bands: tuple[int, ...] = (1, 2, 3, 4)
    max_pixels: int | None = None

    def shortcoming(self, bands: int) -> str | None:
        """Why an image of that many bands does not fit in, as the end of a sentence; None if it fits."""
        if bands in self.bands:
            return None
        if bands in (2, 4) and not {2, 4} & set(self.bands):
            return "holds no transparency, and the result has an alpha band"
        return "holds colour only, and the result is grey"


@dataclass(frozen=True)
class Format:
    """A family of formats.

    Attributes
    ----------
    key
        As ``--format`` spells it.
    name
        As people write it.
    suffixes
        File name endings in lower case, the usual one first.
    max_side
        Largest width or height in pixels.
    compressions
        In order of preference: the first that holds the image is taken if none is asked for.
    pyramid
        Whether the format holds reduced copies: never, if chosen, or always.
    save
        Writes a canvas to a path that ends in anything, streaming.
    check
        Refuses a path at which the output could not be put.
    place
        Moves what was saved at one path to another, or to an address, replacing what is there.
    root
        The file of an output that is written last, without which it is none.
    straight
        Whether `save` can write to an address, where it replaces nothing.
    """

    key: str
    name: str
    suffixes: tuple[str, ...]
    max_side: int
    compressions: tuple[Compression, ...]
    save: Callable[[Canvas, Labels, Settings, str], None]
    pyramid: Literal["never", "chosen", "always"] = "never"
    check: Callable[[str], None] = check_place
    place: Callable[[str, str], None] = replace_file
    root: Callable[[str], str] = str
    straight: bool = False

    @property
    def depths(self) -> set[Depth]:
        """Sample depths that some compression of the format holds."""
        return {depth for compression in self.compressions for depth in compression.depths}

    def shortcoming(self, width: int, height: int, bands: int) -> str | None:
        """Why an image does not fit in at any depth, as the end of a sentence; None if it fits."""
        if max(width, height) > self.max_side:
            return f"holds at most {self.max_side:,} pixels a side, and the result is {width:,} × {height:,}"
        reasons = [compression.shortcoming(bands) for compression in self.compressions]
        return reasons[0] if all(reasons) else None

    def compression_for(self, options: ExportOptions, bands: int | None = None) -> Compression:
        """The compression asked for, or else the first that holds that many bands.

        Raises
        ------
        UsageError
            If the format has no such compression, or it does not hold the bands.
        """
        fitting = [c for c in self.compressions if bands is None or c.shortcoming(bands) is None]
        if options.compression is None:
            return (fitting or self.compressions)[0]
        named = next((c for c in self.compressions if c.name == options.compression), None)
        if named is None:
            names = [c.name for c in self.compressions]
            advice = (
                f"has {listed(names)}; use one of these" if names[1:] else "has but one way; leave it out"
            )
            raise UsageError(f"--compression {options.compression}: {self.name} {advice}")
        reason = None if bands is None else named.shortcoming(bands)
        if reason is not None:
            advice = f"use {listed([c.name for c in fitting], 'or')}" if fitting else "name another format"
            raise UsageError(f"--compression {named.name}: in {self.name} {reason}; {advice}")
        return named

    def dtype_for(self, options: ExportOptions, source: Depth) -> Depth:
        """Depth of the canvas: what was asked for; else the source's, or 8 bits where there is no room.

        Raises
        ------
        UsageError
            If a depth was asked for that the format or the compression asked for does not hold.
        """
        compression = self.compression_for(options)
        if options.depth is None:
            return source if source in compression.depths else "uint8"
        if options.depth not in _DTYPES:
            raise UsageError(f"--depth {options.depth}: is no depth of a sample; use 8 or 16")
        asked = _DTYPES[options.depth]
        if asked not in compression.depths:
            deep = [c.name for c in self.compressions if asked in c.depths]
            if not deep:
                raise UsageError(
                    f"--depth {options.depth}: {self.name} holds {_BITS[compression.depths[0]]} bits; "
                    "name a .png, .tif or .ome.zarr output"
                )
            raise UsageError(
                f"--depth {options.depth}: {self.name} with {compression.name} compression holds "
                f"{_BITS[compression.depths[0]]} bits; use --compression {listed(deep, 'or')}"
            )
        return asked

    def most_bytes(self, settings: Settings, pixel_bytes: int) -> int:
        """What an output may take, of a canvas of that many bytes without compression."""
        lossy = any(c.lossy for c in self.compressions if c.name == settings.compression)
        packed = pixel_bytes * (_MOST_OF_LOSSY if lossy else _MOST_OF_LOSSLESS)
        return round(packed * (_PYRAMID_GROWTH if settings.pyramid else 1))

    def settle(self, options: ExportOptions, width: int, height: int, bands: int) -> Settings:
        """Decide what the options leave open.

        Raises
        ------
        UsageError
            If one of them cannot be honoured; the message names it.
        """
        compression = self.compression_for(options, bands)
        if compression.max_pixels is not None and width * height > compression.max_pixels:
            larger = [c.name for c in self.compressions if c.max_pixels is None]
            raise UsageError(
                f"--compression {compression.name}: in {self.name} holds {compression.max_pixels:,} pixels for sure, "
                f"and the result has {width * height:,}; use {listed(larger, 'or')}, or name another format"
            )
        if options.quality is not None:
            self._check_quality(options.quality, compression)
        pyramid = options.pyramid
        if pyramid and self.pyramid == "never":
            raise UsageError(
                f"--pyramid: {self.name} holds the image in one size; name a .tif, .dzi or .ome.zarr output"
            )
        if pyramid is False and self.pyramid == "always":
            raise UsageError(
                f"--no-pyramid: {self.name} is a pyramid always; leave it out or name a .tif output"
            )
        if pyramid is None:
            pyramid = self.pyramid == "always" or (
                self.pyramid == "chosen" and width * height > PYRAMID_FROM_PIXELS
            )
        return Settings(compression.name, options.quality or DEFAULT_QUALITY, pyramid)

    def _check_quality(self, quality: int, compression: Compression) -> None:
        if quality not in _QUALITIES:
            raise UsageError(f"--quality {quality}: is out of range; give 1 (worst) to 100 (best)")
        if compression.lossy:
            return
        lossy = [c.name for c in self.compressions if c.lossy]
        if not lossy:
            raise UsageError(f"--quality: {self.name} is lossless; leave it out")
        raise UsageError(
            f"--quality: {self.name} with {compression.name} compression is lossless; "
            f"leave it out or add --compression {listed(lossy, 'or')}"
        )


def listed(names: list[str], word: str = "and") -> str:
    """Names as a sentence has them: "a, b and c"."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
