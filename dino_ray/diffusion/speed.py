"""Making a model's steps faster: blocks compiled, attention by another kernel, blocks skipped, convolutions laid out
for tensor cores. What can't be had is refused: by ``check_model`` of a model, by ``check_machine`` of a machine.

Imports torch and diffusers only where a machine or a model is at hand.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ray.errors import UsageError, describe_error

if TYPE_CHECKING:
    from dino_ray.diffusion.families import Family
    from dino_ray.diffusion.model_options import ModelOptions

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
COMPILER = "inductor"
"""torch's name for what turns traced blocks into kernels."""


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention."""

    backend: str
    """diffusers' name for it."""
    package: str | None = None
    """Python module that has it, where torch does not."""
    install: str = ""
    """How to get that."""
    masks: bool = True
    """It takes a mask or a bias on the logits."""
    capability: tuple[int, int] | None = (8, 0)
    """CUDA's least compute capability that it runs on, in half precision alone; None: it runs on anything."""


KERNELS: Mapping[str, Kernel] = {
    "sdpa": Kernel("native", capability=None),
    "math": Kernel("_native_math", capability=None),
    "cudnn": Kernel("_native_cudnn"),
    "flash": Kernel("flash", "flash_attn", "pip install flash-attn", masks=False),
    "flash3": Kernel(
        *("_flash_3", "flash_attn_interface", "build FlashAttention's hopper/ folder"),
        masks=False,
        capability=(9, 0),
    ),
    "sage": Kernel("sage", "sageattention", "pip install sageattention", masks=False),
    "xformers": Kernel("xformers", "xformers", "pip install xformers", masks=False),
}
"""By the name that ``--attention`` takes. Those that diffusers would download and run from the hub are left out: code
from there is not run. xformers takes masks, but only of lengths that are multiples of 8."""


def check_model(name: str, family: Family | None, options: ModelOptions, *, adapter: bool) -> None:
    """Refuse what a model can't do.

    Parameters
    ----------
    family
        None: the bundled model.
    adapter
        A DINO adapter, which weights its tokens by a bias on attention's logits, goes with it.

    Raises
    ------
    UsageError
    """
    given = {
        "--compile": options.compile,
        "--attention": options.attention != "auto",
        "--step-cache": options.step_cache > 0,
    }
    if family is None:
        for option in (option for option, is_given in given.items() if is_given):
            raise UsageError(f"{option}: the model {name} is too small to gain by it; leave it out")
        return
    if given["--step-cache"] and not family.step_cache:
        raise UsageError(
            f"--step-cache: a step of {family.title} can't take over what an earlier one computed; leave it out"
        )
    if given["--compile"] and options.offload == "sequential":
        raise UsageError(
            "--compile: compiles blocks whose layers --offload sequential moves one by one; give --offload group"
        )
    if given["--step-cache"] and options.controlnet is not None:
        raise UsageError("--step-cache: a step's blocks are added to by --controlnet; leave one of them out")
    if not given["--attention"]:
        return
    if family.attention == "own":
        raise UsageError(
            f"--attention {options.attention}: {family.title} computes attention its own way; leave it out"
        )
    if not KERNELS[options.attention].masks and (adapter or family.attention == "masked"):
        why = (
            "--dino-adapter weights its tokens by a bias"
            if adapter
            else f"{family.title} masks its prompt's padding"
        )
        raise UsageError(f"--attention {options.attention}: takes no mask, and {why}; give sdpa or cudnn")


def check_machine(options: ModelOptions, device: str, dtype: str) -> None:
    """Refuse what this machine can't do, as far as can be told without trying.

    Parameters
    ----------
    device
        As ``pick_device`` returns it.
    dtype
        As torch spells it, or ``auto``, which is bfloat16 on CUDA.

    Raises
    ------
    UsageError
        Naming what is missing.
    """
    on_gpu = device.startswith("cuda")
    if options.attention != "auto":
        kernel = KERNELS[options.attention]
        if kernel.capability is not None and not on_gpu:
            raise UsageError(
                f"--attention {options.attention}: needs CUDA, and the model runs on {device}; give sdpa"
            )
        if kernel.capability is not None and dtype == "float32":
            raise UsageError(
                f"--attention {options.attention}: needs --dtype bf16 or fp16; give sdpa for fp32"
            )
        if kernel.package is not None and find_spec(kernel.package) is None:
            raise UsageError(
                f"--attention {options.attention}: no Python module {kernel.package}; {kernel.install}, or give sdpa"
            )
        if kernel.capability is not None:
            _check_capability(options.attention, kernel.capability, device)
    if options.compile:
        if on_gpu and find_spec("triton") is None:
            raise UsageError("--compile: needs triton on CUDA; pip install triton, or leave it out")
        compilers = [os.environ["CC"]] if on_gpu and os.environ.get("CC") else ["gcc", "clang", "cc"]
        if not on_gpu:
            compilers = [os.environ.get("CXX", "g++")]
        if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
            raise UsageError(
                f"--compile: needs a C compiler ({' or '.join(compilers)}); install one, or leave it out"
            )


def _check_capability(attention: str, least: tuple[int, int], device: str) -> None:
    import torch

    if (own := torch.cuda.get_device_capability(device)) < least:
        asked, is_of = (".".join(map(str, pair)) for pair in (least, own))
        raise UsageError(
            f"--attention {attention}: needs a GPU of compute capability {asked}, this one's is {is_of}; give sdpa"
        )


def accelerate(core: Any, options: ModelOptions, device: str, dtype: str) -> None:
    """Have a loaded network that predicts run as ``options`` say; in this order, as each wraps what the one before did.

    Raises
    ------
    UsageError
        Where this machine can't.
    """
    check_machine(options, device, dtype)
    if options.attention != "auto":
        _set_attention(core, options.attention)
    if options.compile:
        _compile(core, device)
    if options.step_cache > 0:
        from diffusers.hooks import FirstBlockCacheConfig

        core.enable_cache(FirstBlockCacheConfig(threshold=options.step_cache))


def _set_attention(core: Any, name: str) -> None:
    from diffusers.models.attention_dispatch import attention_backend

    try:
        # It would become the whole process's: leaving the context gives every other model back what it had.
        with _quiet(), attention_backend("native"):
            core.set_attention_backend(KERNELS[name].backend)
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"--attention {name}: {str(error).partition(chr(10))[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' notice that its interface to attention may change."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _compile(core: Any, device: str) -> None:
    """Compile the blocks that a network repeats, which takes a fraction of the time of the whole; the whole, where it
    names none.

    As diffusers' ``compile_repeated_blocks``, but of each block's ``forward``, beneath the hooks that a step cache puts
    around it: what they remember changes with every step, and would have each block compiled for itself, again and
    again.

    Kernels are kept on disk for the user's next runs and other replicas. Replicas that start together each compile for
    themselves; shapes that differ (a last, smaller batch) are compiled once more, then for any size.
    """
    import torch

    _keep_kernels()
    try:
        torch.compile(torch.neg, backend=COMPILER)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler, a linker or a driver has to say
        reason = describe_error(getattr(error, "inner_exception", error)).partition("\n")[0]
        raise UsageError(f"--compile: this machine can't ({reason}); leave it out") from error
    repeated = getattr(core, "_repeated_blocks", None)
    blocks = [block for block in core.modules() if type(block).__name__ in (repeated or ())] or [core]
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=COMPILER)


def _keep_kernels() -> None:
    """Have kernels kept for the user, unless somebody has said where: torch itself says a folder of the machine's that
    a restart empties, as soon as it is imported.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):
        os.environ[CACHE_VARIABLE] = str(kernel_cache())


def kernel_cache() -> Path:
    """Where compiled kernels are kept, unless ``TORCHINDUCTOR_CACHE_DIR`` says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "dino-ray" / "kernels"


def lay_out_convolutions(model: Any) -> None:
    """Have a model's two-dimensional convolutions work on channels last, as tensor cores want them."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
