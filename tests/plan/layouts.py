"""Hypothesis strategies for grids."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from dino_ray.plan.geometry import Grid, make_grid


@dataclass(frozen=True)
class Request:
    """What was asked of ``make_grid``."""

    width: int
    height: int
    tile: int
    overlap: int
    multiple: int
    wrap: bool = False

    def grid(self) -> Grid:
        return make_grid(
            self.width,
            self.height,
            tile=self.tile,
            overlap=self.overlap,
            multiple=self.multiple,
            wrap=self.wrap,
        )


@st.composite
def requests(draw: st.DrawFn, longest: int = 400, shortest_tile: int = 1) -> Request:
    """Any valid request for canvases up to about ``longest`` a side, open or closed."""
    multiple = draw(st.sampled_from([1, 2, 3, 8, 16]))
    units = draw(st.integers(-(-shortest_tile // multiple), max(1, 128 // multiple)))
    overlap = draw(st.integers(0, units // 2 * multiple))
    width, height = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    wrap = draw(st.booleans())
    if wrap:
        width = max(2, round(width / multiple)) * multiple
    return Request(width, height, units * multiple, overlap, multiple, wrap)


def small_requests() -> st.SearchStrategy[Request]:
    """Requests few enough in tiles and pixels to look at each pixel of each tile."""
    return requests(longest=80, shortest_tile=12) | requests(longest=12)
