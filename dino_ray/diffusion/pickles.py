"""Weights out of pickles, once the user has allowed it."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def read(path: Path, *, meta: bool = False) -> dict[str, Tensor]:
    """The tensors of a ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` file, by name.

    A file of nothing but tensors is read as such, and can run no code. Of one that holds more, as those that trainers
    write do, its code is run, and a warning says so.

    Parameters
    ----------
    meta : bool
        Names, shapes and types alone, without the values.
    """
    options: dict[str, Any] = {"map_location": "meta" if meta else "cpu"}
    if not meta and zipfile.is_zipfile(path):
        options["mmap"] = True
    try:
        loaded = torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError:
        log.warning(
            "%s holds more than weights: it is read whole, as --allow-pickle says, and any code in it is run",
            path,
        )
        loaded = torch.load(path, weights_only=False, **options)
    while isinstance(loaded, Mapping) and "state_dict" in loaded:
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__} where weights by name are expected")
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
