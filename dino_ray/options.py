"""The fields of the config as options of a command line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click

from dino_ray.config import UpscaleConfig, Wrap, option_name
from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.workers import Workers

Command = TypeVar("Command", bound=Callable[..., Any])

_WRAPS = get_args(get_args(Wrap)[0])


class BareWrap(click.Command):
    """Takes ``--wrap`` bare wherever it stands: what follows is its value only if it can be."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        values = [*options[1:], ""][: len(options)]
        bare = [arg == "--wrap" and value not in _WRAPS for arg, value in zip(options, values, strict=True)]
        spelled = ["--wrap=on" if alone else arg for arg, alone in zip(options, bare, strict=True)]
        return super().parse_args(ctx, [*spelled, *args[len(options) :]])


def config_options(function: Command) -> Command:
    """One option per field of the config, and --config for a file of them; passes ``config`` on."""

    @functools.wraps(function)
    def run(*args: Any, config_file: Path | None, typed: dict[str, Any], **kwargs: Any) -> Any:
        config = UpscaleConfig.from_yaml(config_file, typed) if config_file else UpscaleConfig.parse(typed)
        return function(*args, config=config, **kwargs)

    named = click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE.yaml",
                         help="Options from a file, by the names above; what is typed wins.")  # fmt: skip
    decorated: Command = typed_options(*UpscaleConfig.model_fields)(named(run))
    return decorated


def typed_options(*names: str) -> Callable[[Any], Any]:
    """Options for some fields of the config; passes on as ``typed`` what was given, by field name."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in names}
            typed = {name: value for name, value in given.items() if value is not None and value != ()}
            return function(*args, typed=typed, **kwargs)

        for name in reversed(names):
            run = _option(name)(run)
        return run

    return decorate


def _option(name: str) -> Callable[[Any], Any]:
    field = UpscaleConfig.model_fields[name]
    annotation, option = field.annotation, option_name(name)
    if annotation is bool:
        return click.option(option, name, is_flag=True, default=None, help=field.description)
    if annotation == bool | None:
        both = f"{option}/--no-{option.removeprefix('--')}"
        return click.option(both, name, default=None, help=field.description)
    several = get_origin(annotation) is tuple
    shown = field.default
    if shown is None or several:
        shown = "" if "Default" in (field.description or "") else "what suits the model"
    default = f"  [default: {shown}]" if shown != "" else ""
    help_text = f"{field.description}{default}"
    return click.option(option, name, metavar=_metavar(annotation), help=help_text, multiple=several)


def _metavar(annotation: Any) -> str:
    """What to type: a kind of value, or the choices."""
    if annotation in (Dtypes, Workers):
        return str(annotation.SYNTAX)
    choices = [
        choice for part in _parts(annotation) if get_origin(part) is Literal for choice in get_args(part)
    ]
    kinds = {part for part in _parts(annotation) if isinstance(part, type)}
    names = ["N" if int in kinds else "X" if float in kinds else "TEXT"] if kinds - {type(None)} else []
    return "|".join([*names, *map(str, choices)])


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what annotates them."""
    if get_origin(annotation) in (Annotated, tuple):  # a tuple of any length is given once for each
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation
