"""Options that several verbs take, each said once, alone or in groups; and how a verb takes a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError

DATA = "Where the data lie"
CLIP = "CLIP"
EVALUATION = "Evaluation"
MACHINE = "Machine"

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The dataset's folder, or one with a folder per id (else ZSAD_DATA).",
        rich_help_panel=DATA,
    ),
]
Categories = Annotated[list[str] | None, typer.Option("--category", help="Only this category; repeatable.")]
Limit = Annotated[
    int | None, typer.Option("--limit", help="At most so many images, spread over category and label.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a parameter of the method; repeatable."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...", rich_help_panel=MACHINE)]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Threads that decode ahead.", rich_help_panel=MACHINE)
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out files with a problem.", rich_help_panel=DATA)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@dataclass(frozen=True)
class Towers:
    """Another CLIP than the method's own."""

    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Another CLIP: a name of open_clip or a JSON.", rich_help_panel=CLIP),
    ] = None
    weights: Annotated[
        str | None, typer.Option("--weights", help="A tag, a file, or random[:SEED].", rich_help_panel=CLIP)
    ] = None
    activation: Annotated[
        str | None, typer.Option("--activation", help="auto, gelu or quick_gelu.", rich_help_panel=CLIP)
    ] = None


@dataclass(frozen=True)
class Evaluation:
    """How evidence becomes numbers."""

    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            help="reference, common-1 or legacy200; overrides make it custom.",
            rich_help_panel=EVALUATION,
        ),
    ] = "reference"
    size: Annotated[
        int | None,
        typer.Option(
            "--size", help="Evaluate maps and masks at this many pixels.", rich_help_panel=EVALUATION
        ),
    ] = None
    mask_resize: Annotated[
        str | None,
        typer.Option(
            "--mask-resize",
            metavar="RULE",
            help="bilinear50, nearest or native.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    aupro_limit: Annotated[
        list[float] | None,
        typer.Option(
            "--aupro-limit",
            help="Also give AUPRO up to this false-positive rate; repeatable.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    exact_maps: Annotated[
        bool,
        typer.Option(
            "--exact-maps",
            help="Render maps step by step instead of by folded matrices.",
            rich_help_panel=EVALUATION,
        ),
    ] = False


@dataclass(frozen=True)
class Machine:
    """Where and in what portions the towers run."""

    device: Device = "auto"
    dtype: Annotated[
        str, typer.Option("--dtype", help="fp32, bf16 or fp16 (image tower).", rich_help_panel=MACHINE)
    ] = "fp32"
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Images per batch; halved when memory runs out.", rich_help_panel=MACHINE
        ),
    ] = None
    workers: Workers = None


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Let ``verb`` take groups of options: dataclasses, which Typer does not know as parameters.

    Typer sees the fields of a group in the group's place; the verb receives the group, filled.  A group may
    hold groups.
    """

    @wraps(verb)
    def command(**given: Any) -> None:
        _call(verb, given)

    shown = list(_flat(verb))
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return command


def _parameters(taker: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(taker, eval_str=True).parameters


def _flat(taker: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a verb or a group, with a group's own in its place."""
    for parameter in _parameters(taker).values():
        if is_dataclass(parameter.annotation):
            yield from _flat(parameter.annotation)  # type: ignore[arg-type]
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _call(taker: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Call a verb, or make a group, with its part of ``given``."""
    own = {}
    for name, parameter in _parameters(taker).items():
        kind = parameter.annotation
        own[name] = _call(kind, given) if is_dataclass(kind) else given[name]  # type: ignore[arg-type]
    return taker(**own)


def pairs(texts: list[str] | None, form: str = "--set NAME=VALUE") -> dict[str, str]:
    """Return ``NAME=VALUE`` texts as a table.

    Raises:
        UsageError: for a text without an equals sign; it says what ``form`` was expected.
    """
    table: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"'{text}' is not of the form {form}")
        table[name.strip()] = value.strip()
    return table
