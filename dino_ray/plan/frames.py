"""Windows of an image, and the mapping between the frames ``source_px`` and ``canvas_px``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

from dino_ray.errors import UsageError

_SCALE_DIGITS = 15
"""Decimal digits that any factor can have and still survive as a float."""


@dataclass(frozen=True, slots=True)
class Rect:
    """A half-open window ``[x, x + w) × [y, y + h)`` in the frame that its user names; may be empty."""

    x: int
    y: int
    w: int
    h: int

    def __post_init__(self) -> None:
        assert self.w >= 0, self
        assert self.h >= 0, self

    @property
    def x1(self) -> int:
        """Exclusive right end."""
        return self.x + self.w

    @property
    def y1(self) -> int:
        """Exclusive bottom end."""
        return self.y + self.h

    @property
    def area(self) -> int:
        return self.w * self.h

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this window in an array of (rows, columns, ...) with the same origin."""
        return slice(self.y, self.y1), slice(self.x, self.x1)

    def intersect(self, other: Rect) -> Rect | None:
        """The common part, or None where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Rect(x, y, x1 - x, y1 - y) if x < x1 and y < y1 else None

    def shift(self, dx: int, dy: int) -> Rect:
        return Rect(self.x + dx, self.y + dy, self.w, self.h)

    def pad(self, n: int) -> Rect:
        """Grown by ``n`` on all four sides."""
        return Rect(self.x - n, self.y - n, self.w + 2 * n, self.h + 2 * n)

    def turns(self, period: int) -> tuple[Rect, ...]:
        """The parts of a window of something that closes on itself in x, left to right.

        Parameters
        ----------
        period
            Its length around. The window may lie anywhere and be longer than that.

        Returns
        -------
        tuple of Rect
            Each within ``[0, period)`` in x; side by side they are the window. Empty for an empty window.
        """
        cuts = range((self.x // period + 1) * period, self.x1, period)
        ends = (self.x, *cuts, self.x1) if self.w else ()
        return tuple(Rect(a % period, self.y, b - a, self.h) for a, b in pairwise(ends))

    def clip(self, w: int, h: int) -> Rect:
        """The part inside ``[0, w) × [0, h)``; empty where the window lies outside."""
        x, y = min(max(self.x, 0), w), min(max(self.y, 0), h)
        x1, y1 = min(max(self.x1, 0), w), min(max(self.y1, 0), h)
        return Rect(x, y, x1 - x, y1 - y)


@dataclass(frozen=True)
class Scaling:
    """The exact mapping between source_px and canvas_px.

    Pixel centres lie at half-integers on both sides and the image borders coincide, so canvas pixel ``c``
    has its centre at source coordinate ``(c + 0.5) * source / canvas - 0.5``. The factors of the two axes
    may differ a little, because the canvas has a whole number of pixels.
    """

    source_w: int
    source_h: int
    canvas_w: int
    canvas_h: int

    def __post_init__(self) -> None:
        assert min(self.source_w, self.source_h, self.canvas_w, self.canvas_h) >= 1, self

    @classmethod
    def from_factor(cls, source_w: int, source_h: int, scale: float) -> Scaling:
        """The canvas of ``source * scale`` pixels, halves rounded up, at least 1 × 1.

        ``scale`` counts as the decimal number it prints as: 2.3 × 5 is 11.5 and becomes 12.

        Raises
        ------
        UsageError
            ``scale`` is not a positive finite number.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"--scale {scale}: must be a positive number such as 2 or 1.5")
        exact = Fraction(repr(float(scale)))
        canvas_w, canvas_h = (max(1, math.floor(n * exact + Fraction(1, 2))) for n in (source_w, source_h))
        return cls(source_w, source_h, canvas_w, canvas_h)

    @property
    def factor_x(self) -> Fraction:
        """canvas_px per source_px across."""
        return Fraction(self.canvas_w, self.source_w)

    @property
    def factor_y(self) -> Fraction:
        """canvas_px per source_px down."""
        return Fraction(self.canvas_h, self.source_h)

    def source_window(self, rect: Rect, halo: int = 0) -> Rect:
        """The smallest window, source_px, with the samples on either side of every pixel centre of ``rect``.

        Parameters
        ----------
        rect
            canvas_px, not empty; may stick out of the canvas.
        halo
            Further samples wanted on each side, source_px.

        Returns
        -------
        Rect
            source_px; may stick out of the source. There readers replicate its edge pixels or, to the left
            and the right of a source that closes on itself, go on around it.
        """
        x0, x1 = _source_span(rect.x, rect.x1, self.source_w, self.canvas_w)
        y0, y1 = _source_span(rect.y, rect.y1, self.source_h, self.canvas_h)
        return Rect(x0, y0, x1 - x0, y1 - y0).pad(halo)

    def source_box(self, rect: Rect) -> tuple[float, float, float, float]:
        """The area that ``rect`` (canvas_px) covers, as (x, y, w, h) in source_px, borders included.

        Where ``rect`` sticks out of the canvas, the box sticks out of the source as far.
        """
        fx, fy = self.factor_x, self.factor_y
        return float(rect.x / fx), float(rect.y / fy), float(rect.w / fx), float(rect.h / fy)

    def check_closes(self, multiple: int) -> None:
        """Refuse a canvas that can't close on itself in x, with the scales around it that can.

        Parameters
        ----------
        multiple
            What the canvas's width must be a whole number of, canvas_px.

        Raises
        ------
        UsageError
            The width is not; names ``--wrap``, and the nearest ``--scale`` below and above.
        """
        if self.canvas_w % multiple == 0:
            return
        below = self.canvas_w // multiple * multiple
        ways = [
            f"--scale {scale} ({width:,} px)"
            for width in (below, below + multiple)
            if (scale := _scale_to(width, self.source_w)) is not None and scale >= 1
        ]
        raise UsageError(
            f"--wrap: a result {self.canvas_w:,} px wide does not close, its tiles lie on multiples of "
            f"{multiple} px; use {' or '.join([*ways, '--wrap off'])}"
        )


def _scale_to(width: int, source: int) -> Decimal | None:
    """The shortest decimal factor that takes ``source`` px to ``width``."""
    if width < 1:
        return None
    with localcontext(prec=_SCALE_DIGITS):
        exact = Decimal(width) / source
        for digits in range(_SCALE_DIGITS):
            scale = round(exact, digits)
            if scale > 0 and Scaling.from_factor(source, 1, float(scale)).canvas_w == width:
                return scale
    return None


def _source_span(lo: int, hi: int, source: int, canvas: int) -> tuple[int, int]:
    """Half-open span of the samples around the centres of canvas pixels ``lo`` to ``hi - 1``."""
    assert lo < hi
    # Centre c sits at ((2c + 1) source - canvas) / (2 canvas): floor of the first, ceiling of the last.
    first = ((2 * lo + 1) * source - canvas) // (2 * canvas)
    last = -((canvas - (2 * hi - 1) * source) // (2 * canvas))
    return first, last + 1
