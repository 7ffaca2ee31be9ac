"""The code of dino_ray itself, as a package of Ray's: for clusters that have its dependencies, not itself."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import dino_ray
from dino_ray.errors import UsageError

SUFFIXES = frozenset({".py", ".json", ".md", ".safetensors", ".typed"})
"""What the package is made of; ``.safetensors`` are the bundled models'. Nothing else that lies there is sent."""

MOST_BYTES = 64 * 2**20
"""Every node unpacks it, and the head keeps it in memory. The package has some 30 MB; Ray's own limit is 100 MiB."""

_LARGEST_NAMED = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same files make the same archive, which is then sent once."""


def package(root: Path | None = None) -> tuple[str, bytes]:
    """The package's own files, and a name that tells their state.

    Parameters
    ----------
    root
        Folder of the package; None: the one that runs.

    Raises
    ------
    UsageError
        If there is more than a package has; names the largest files.
    """
    root = root or Path(dino_ray.__file__).parent
    files = sorted(own_files(root))
    total = sum(path.stat().st_size for path in files)
    if total > MOST_BYTES:
        largest = sorted(files, key=lambda path: path.stat().st_size, reverse=True)[:_LARGEST_NAMED]
        told = ", ".join(
            f"{path.relative_to(root)} ({path.stat().st_size / 1e6:,.0f} MB)" for path in largest
        )
        raise UsageError(
            f"--ship: {root} holds {total / 1e6:,.0f} MB, and {MOST_BYTES / 1e6:,.0f} can be sent; the largest are "
            f"{told}; move what does not belong there, or install dino-ray on the cluster"
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            entry = zipfile.ZipInfo(str(Path(root.name, path.relative_to(root))), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    body = packed.getvalue()
    return f"_ray_pkg_{hashlib.sha256(body).hexdigest()[:16]}.zip", body


def own_files(root: Path) -> Iterator[Path]:
    """The files of a package, none hidden, linked or made by Python."""
    return (path for path in _walk(root) if path.suffix in SUFFIXES)


def _walk(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.is_symlink() or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path
