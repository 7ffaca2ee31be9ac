"""Which files a command works on, and what each result is called. Looks at folders, never into files."""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from dino_ray.errors import UsageError
from dino_ray.places import is_url, shown

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".gif", ".heic", ".heif", ".avif"),
    *(".jxl", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".svg"),
)
"""What counts as an image in a folder that was named as a whole; a file that is named itself may be called anything."""

FIELDS = ("stem", "name", "suffix", "folder", "scale", "index")
"""What stands in braces in an output template."""


@dataclass(frozen=True)
class Input:
    """One image to read.

    Attributes
    ----------
    path
        A local path as it was given or found, or a URL.
    folder
        Where it lies below the folder or pattern that was named, with forward slashes; empty if right there.
    """

    path: str
    folder: str = ""

    @property
    def name(self) -> str:
        """File name, without folders."""
        if is_url(self.path):
            parts = urlsplit(self.path)
            return PurePosixPath(unquote(parts.path)).name or parts.netloc
        return Path(self.path).name


def expand(named: Sequence[str]) -> list[Input]:
    """What the arguments name: files, folders of images, patterns such as ``'scans/**/*.tif'``, URLs.

    A file that exists is taken even if its name looks like a pattern. Folders and patterns give their images in
    natural order (``2.png`` before ``10.png``); what is named twice is taken once, a file rather than a link to it.

    Raises
    ------
    UsageError
        If a folder holds no image, or a pattern matches no file.
    """
    found: dict[str, Input] = {}
    for name in named:
        for image in _expand_one(name):
            file = image.path if is_url(image.path) else os.path.realpath(image.path)
            if file not in found or os.path.islink(found[file].path) > os.path.islink(image.path):
                found[file] = image
    return list(found.values())


def _expand_one(name: str) -> Iterator[Input]:
    if is_url(name):
        yield Input(name)
    elif os.path.isdir(name):
        inside = [entry.name for entry in os.scandir(name) if _is_image(entry)]
        if not inside:
            raise UsageError(f"{name}: holds no image; name files, or a pattern such as '{name}/**/*.jpg'")
        yield from (Input(os.path.join(name, entry)) for entry in sorted(inside, key=_natural))
    elif not os.path.lexists(name) and glob.has_magic(name):
        matches = [match for match in glob.iglob(name, recursive=True) if os.path.isfile(match)]
        if not matches:
            raise UsageError(f"{name}: matches no file")
        root = _fixed_folder(name, glob.has_magic)
        yield from (Input(match, _below(root, match)) for match in sorted(matches, key=_natural))
    else:
        yield Input(name)  # if it is not there, reading its header says so


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by their value."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path) if part
    ]


def _fixed_folder(pattern: str, varies: Any) -> str:
    """The folders at the start of a pattern that are the same for all that it stands for."""
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if varies(part):
            break
        fixed.append(part)
    return os.path.join(*fixed) if fixed else ""


def _below(root: str, path: str) -> str:
    folder = Path(os.path.relpath(os.path.dirname(path) or ".", root or ".")).as_posix()
    return "" if folder == "." else folder


def outputs(inputs: Sequence[Input], output: str, scale: float, suffix: str) -> list[Path]:
    """Where each result goes: ``output`` is a file, a folder, or a template such as ``'out/{stem}@{scale}x.png'``.

    Parameters
    ----------
    inputs
        From ``expand``.
    output
        In a template, braces hold one of ``FIELDS``, with a format if need be (``{index:03}``); a brace itself is
        doubled. Several inputs make a plain name a folder.
    suffix
        With its dot, of the files in a folder.

    Raises
    ------
    UsageError
        If a template is not valid, leads out of its own folder, or two inputs, or an input and an output, would be
        one file.
    """
    if not output:
        raise UsageError(
            "-o: is empty; name a file, a folder, or a template such as 'out/{stem}@{scale}x.png'"
        )
    if is_url(output):
        raise UsageError(
            f"-o {shown(output)}: results are written to local files; name one, and copy it there"
        )
    if "{" in output or "}" in output:
        results = list(_from_template(inputs, output, scale))
    elif os.path.isdir(output) or output.endswith(("/", os.sep)) or len(inputs) > 1:
        results = [Path(output, f"{Path(image.name).stem}@{scale:g}x{suffix}") for image in inputs]
    else:
        results = [Path(output)]
    _check_distinct(inputs, results)
    return results


def make_folders(results: Iterable[Path], output: str) -> None:
    """Make the folders that a folder or a template asks for; a plain file's folder has to be there.

    Raises
    ------
    UsageError
        If one can't be made.
    """
    for folder in dict.fromkeys(path.parent for path in results if str(path) != output):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"-o {output}: the folder {folder} can't be made ({error.strerror}); name another"
            ) from error


def _from_template(inputs: Sequence[Input], template: str, scale: float) -> Iterator[Path]:
    _check_template(template)
    root = os.path.realpath(_fixed_folder(template, lambda part: "{" in part) or ".")
    for index, image in enumerate(inputs, 1):
        name = Path(image.name)
        values = {
            "stem": name.stem,
            "name": name.name,
            "suffix": name.suffix.removeprefix("."),
            "folder": image.folder,
            "scale": f"{scale:g}",
            "index": index,
        }
        result = _filled(template, values)
        inside = os.path.realpath(result.parent)
        if inside != root and not inside.startswith(root.rstrip(os.sep) + os.sep):
            raise UsageError(f"-o {template}: {image.path} would become {result}, outside of {root}; refused")
        yield result


def _check_template(template: str) -> None:
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UsageError(f"-o {template}: is no valid template ({error}); write {{{{ for a brace") from error
    for _, field, spec, conversion in parts:
        # Nor what reaches into attributes, such as {stem.__class__}.
        if field not in FIELDS or conversion or "{" in (spec or ""):
            raise UsageError(
                f"-o {template}: {{{field}}} is not known; use {known}, or write {{{{ for a brace"
            )
    if template.endswith(("/", os.sep)):
        raise UsageError(f"-o {template}: names a folder; add a file name such as {{stem}}.png")


def _filled(template: str, values: Mapping[str, Any]) -> Path:
    try:
        return Path(template.format(**values))
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError(f"-o {template}: is no valid template ({error})") from error


def _check_distinct(inputs: Sequence[Input], results: Sequence[Path]) -> None:
    read = {os.path.realpath(image.path): image for image in inputs if not is_url(image.path)}
    taken: dict[str, Input] = {}
    for image, result in zip(inputs, results, strict=True):
        place = os.path.realpath(result)
        if place in read:
            raise UsageError(
                f"{image.path} would be written over the input {read[place].path}; name another output"
            )
        if place in taken:
            raise UsageError(
                f"{taken[place].path} and {image.path} would both become {result}; "
                "use a template such as 'out/{folder}/{name}.png', or upscale them one by one"
            )
        taken[place] = image
