"""Which files a command works on, and what each result is called. Looks at folders, never into files."""

from __future__ import annotations

import glob
import os
import posixpath
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from dino_ray import places
from dino_ray.errors import JobError, UsageError
from dino_ray.places import is_url, shown

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".gif", ".heic", ".heif", ".avif"),
    *(".jxl", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".svg"),
)
"""What counts as an image in a folder that was named as a whole; a file that is named itself may be called anything."""

FOLDER_SUFFIXES = (".zarr",)
"""Of images that are folders: one of that name is the output, not a folder to put it in."""

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
            file = _file(image.path)
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


def outputs(inputs: Sequence[Input], output: str, scale: float, suffix: str) -> list[str]:
    """Where each result goes: ``output`` is a file, a folder, or a template such as ``'out/{stem}@{scale}x.png'``.

    Parameters
    ----------
    inputs
        From ``expand``.
    output
        A path, or an fsspec address such as ``s3://bucket/out/``. In a template, braces hold one of ``FIELDS``, with a
        format if need be (``{index:03}``); a brace itself is doubled. Several inputs make a plain name a folder.
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
    if "{" in output or "}" in output:
        results = list(_from_template(inputs, output, scale))
    elif len(inputs) > 1 or _is_folder(output):
        results = [
            _plain(places.join(output, f"{Path(image.name).stem}@{scale:g}x{suffix}")) for image in inputs
        ]
    else:
        results = [_plain(output)]
    _check_distinct(inputs, results)
    return results


def _is_folder(output: str) -> bool:
    if output.endswith(("/", os.sep)):
        return True
    try:
        return places.is_folder(output) and not output.lower().endswith(FOLDER_SUFFIXES)
    except JobError:  # who may write need not be allowed to look; and what is wrong there, writing says
        return False


def _plain(place: str) -> str:
    """A place as it is meant: an address as it is, a path without dots and doubled slashes."""
    return place if is_url(place) else str(places.local_path(place))


def make_folders(results: Iterable[str], output: str) -> None:
    """Make the folders that a folder or a template asks for; a plain file's folder has to be there.

    Behind addresses, folders are made where there are any as files are written.

    Raises
    ------
    UsageError
        If one can't be made.
    """
    asked = (Path(place) for place in results if place != _plain(output) and not is_url(place))
    for folder in dict.fromkeys(path.parent for path in asked):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"-o {output}: the folder {folder} can't be made ({error.strerror}); name another"
            ) from error


def _from_template(inputs: Sequence[Input], template: str, scale: float) -> Iterator[str]:
    _check_template(template)
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
        result = _plain(_filled(template, values))
        root = _left(template, result)
        if root is not None:
            raise UsageError(
                f"-o {shown(template)}: {shown(image.path)} would become {shown(result)}, outside of {root}; refused"
            )
        yield result


def _left(template: str, result: str) -> str | None:
    """The folder that a template names, if a result of it is not in there."""
    if is_url(template):
        fixed = template.partition("{")[0].rpartition("/")[0]
        below = posixpath.normpath(result.removeprefix(fixed).lstrip("/"))
        return shown(fixed) if below.split("/")[0] == ".." else None
    root = os.path.realpath(_fixed_folder(template, lambda part: "{" in part) or ".")
    inside = os.path.realpath(os.path.dirname(result))
    return None if inside == root or inside.startswith(root.rstrip(os.sep) + os.sep) else root


def _check_template(template: str) -> None:
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UsageError(
            f"-o {shown(template)}: is no valid template ({error}); write {{{{ for a brace"
        ) from error
    for _, field, spec, conversion in parts:
        # Nor what reaches into attributes, such as {stem.__class__}.
        if field not in FIELDS or conversion or "{" in (spec or ""):
            raise UsageError(
                f"-o {shown(template)}: {{{field}}} is not known; use {known}, or write {{{{ for a brace"
            )
    if template.endswith(("/", os.sep)):
        raise UsageError(f"-o {shown(template)}: names a folder; add a file name such as {{stem}}.png")


def _filled(template: str, values: Mapping[str, Any]) -> str:
    try:
        return template.format(**values)
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError(f"-o {shown(template)}: is no valid template ({error})") from error


def _check_distinct(inputs: Sequence[Input], results: Sequence[str]) -> None:
    read = {_file(image.path): image for image in inputs}
    taken: dict[str, Input] = {}
    for image, result in zip(inputs, results, strict=True):
        place = _file(result)
        if place in read:
            raise UsageError(
                f"{shown(image.path)} would be written over the input {shown(read[place].path)}; name another output"
            )
        if place in taken:
            raise UsageError(
                f"{shown(taken[place].path)} and {shown(image.path)} would both become {shown(result)}; "
                "use a template such as 'out/{folder}/{name}.png', or upscale them one by one"
            )
        taken[place] = image


def _file(place: str) -> str:
    """The same for all names of a file."""
    return place if is_url(place) else os.path.realpath(places.local_path(place))
