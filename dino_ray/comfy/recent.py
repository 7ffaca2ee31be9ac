"""What was made last, kept for the next run: a changed seed changes neither the base nor what DINO sees in it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample import Upsampler
from dino_ray.upsample.lanczos import Array

Made = TypeVar("Made")

GUIDES = 4
"""Images whose guides are kept: a map of DINO features is as large as a few megapixels."""
BASE_BYTES = 256 * 2**20
"""Of tiles of the base: a result of 4,096 x 4,096 px takes 200 MB."""


class Recent(Generic[Made]):
    """The last results of something, up to a total ``weight``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[Made, int]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()
        self.found = 0
        """How often something was there already."""

    def get(
        self, key: Hashable, make: Callable[[], Made], weight: Callable[[Made], int] = lambda made: 1
    ) -> Made:
        """What is kept under ``key``; else what ``make`` makes, which is kept then."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.found += 1
                return self._kept[key][0]
        made = make()
        with self._lock:
            self._kept[key] = made, weight(made)
            self._weight += weight(made)
            while self._weight > self._most:
                _, (_, lost) = self._kept.popitem(last=False)
                self._weight -= lost
        return made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self._weight = 0


guides: Recent[Any] = Recent(GUIDES)
bases: Recent[Array] = Recent(BASE_BYTES)


def fingerprint(pixels: np.ndarray) -> str:
    """What tells an array from all others."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    return f"{pixels.shape} {pixels.dtype} {digest.hexdigest()}"


@dataclass(frozen=True)
class RememberedBase:
    """An upsampler that keeps what it made last."""

    inner: Upsampler
    name: str

    @property
    def linear(self) -> bool:
        return self.inner.linear

    @property
    def device(self) -> Any:
        return getattr(self.inner, "device", "cpu")

    def suited(self, worn: bool) -> RememberedBase:
        """As the upsampler's."""
        return RememberedBase(self.inner.suited(worn), f"{self.name} worn" if worn else self.name)

    def halo(self, scaling: Scaling) -> int:
        """As the upsampler's."""
        return self.inner.halo(scaling)

    def __call__(self, window: Array, window_rect: Rect, rect: Rect, scaling: Scaling) -> Array:
        """As the upsampler's."""
        key = (self.name, fingerprint(window), window_rect, rect, scaling)
        return bases.get(
            key, lambda: self.inner(window, window_rect, rect, scaling), lambda made: int(made.nbytes)
        )
