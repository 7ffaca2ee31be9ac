"""Counting what a component takes, on torch's meta device: its own code runs on shapes alone, without weights.

What is counted is what torch allocates. A GPU's libraries allocate more: workspaces of convolutions, what its allocator
rounds up; ``footprint`` allows for that.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dino_ray.diffusion.footprint import Count

LOW_PRECISION_KEPT = ("pos_embed", "patch_embed", "norm", "^proj_in$", "^proj_out$")
"""Modules that diffusers keeps in the compute precision where it stores the others in fp8: its own defaults."""


def build(library: str, cls: str, config: Mapping[str, Any]) -> nn.Module:
    """A component of that class and config, on the meta device, which holds no weights."""
    config = deepcopy(dict(config))  # transformers changes what it is given
    with torch.device("meta"):
        if library == "diffusers":
            import diffusers

            made: nn.Module = getattr(diffusers, cls).from_config(config)
        else:
            import transformers

            kind = transformers.CONFIG_MAPPING[config["model_type"]]
            made = getattr(transformers, cls)(kind.from_dict(config))
    return made.eval().requires_grad_(False)


def count(model: nn.Module) -> Count:
    """Parameters of a component, by what can be done with them."""
    parameters = _elements(model.state_dict(keep_vars=True).values())
    linear = _elements(each.weight for each in model.modules() if isinstance(each, nn.Linear))
    blocks = [_elements(block.parameters()) for parent in _outermost_lists(model) for block in parent]
    leaves = [_elements(each.parameters(recurse=False)) for each in model.modules()]
    return Count(
        parameters=parameters,
        linear=linear,
        castable=_castable(model),
        largest_block=max(blocks, default=parameters),
        outside_blocks=parameters - sum(blocks),
        largest_leaf=max(leaves, default=0),
    )


def _elements(parameters: Iterable[Tensor]) -> int:
    """Of shared parameters, each once."""
    return sum(each.numel() for each in {id(each): each for each in parameters}.values())


def _outermost_lists(model: nn.Module) -> Iterator[nn.ModuleList]:
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _castable(model: nn.Module) -> int:
    """Parameters of layers that diffusers stores in fp8, by the rules of its ``enable_layerwise_casting``."""
    from diffusers.hooks._common import _GO_LC_SUPPORTED_PYTORCH_LAYERS as LAYERS

    kept = [
        *LOW_PRECISION_KEPT,
        *(getattr(model, "_skip_layerwise_casting_patterns", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
    ]

    def within(module: nn.Module, name: str) -> int:
        if any(re.search(pattern, name) for pattern in kept):
            return 0
        if isinstance(module, LAYERS):
            return _elements(module.parameters())
        return sum(within(child, f"{name}.{key}" if name else key) for key, child in module.named_children())

    return within(model, "")


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors that live at once, at most, beside those that are known when it begins."""

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [each for model in known for each in (*model.parameters(), *model.buffers())]
        self._known = {each.untyped_storage()._cdata for each in tensors}
        self._living: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._note(each.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or key in self._living:
            return
        self._living[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._living.pop(key, 0)


def peak_bytes(work: Callable[[], object], *known: nn.Module) -> int:
    """What ``work`` allocates at once, at most, beside the weights of ``known``, without a gradient."""
    with torch.no_grad(), _fused_attention(), Meter(*known) as meter:
        work()
    return int(meter.peak)


def peak_bytes_with_gradient(work: Callable[[], Tensor], *known: nn.Module) -> int:
    """As ``peak_bytes``, of ``work`` and of the gradient of what it returns, with attention as guidance computes it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), Meter(*known) as meter:
        torch.autograd.backward(work().sum())
    return int(meter.peak)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention that holds no matrix of all pairs, as every GPU kernel of it; the meta device would take the other."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    stock = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = stock
