"""ComfyUI's cancel, heeded wherever something takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dino_ray.engine.watch import Cancelled


class Interrupts:
    """Whether the user has cancelled the prompt.

    ComfyUI's own exception ends the node, but only from the thread and the place where it is raised: what an engine
    runs reports a lost call instead. So it is noted here, calls end as `Cancelled`, and ``raise_if_seen`` raises it.
    """

    def __init__(self) -> None:
        self._seen: BaseException | None = None

    def __call__(self) -> bool:
        """Whether; does not take the request off the desk."""
        import comfy.model_management

        return self._seen is not None or bool(comfy.model_management.processing_interrupted())

    def heed(self, *ignored: object) -> None:
        """Raise `Cancelled` if so."""
        if self():
            raise Cancelled("cancelled")

    def raise_if_seen(self) -> None:
        """Raise ComfyUI's exception if so."""
        import comfy.model_management

        if self._seen is not None:
            raise self._seen
        comfy.model_management.throw_exception_if_processing_interrupted()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Around calls of ComfyUI, which may raise its exception themselves."""
        import comfy.model_management

        self.heed()
        try:
            yield
        except comfy.model_management.InterruptProcessingException as error:
            self._seen = error
            raise Cancelled("cancelled") from None

    @contextmanager
    def within(self, network: Any) -> Iterator[None]:
        """Asked before each of a network's blocks: a step of a large one takes long."""
        from torch import nn

        blocks = [
            block
            for part in network.modules()
            if isinstance(part, nn.ModuleList | nn.Sequential)
            for block in part.children()
            if next(block.children(), None) is not None
        ]
        hooks = [block.register_forward_pre_hook(self.heed) for block in blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
