"""What holds for every verb: no word is empty, numbers lie within bounds, options come in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import wraps
from math import inf
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import UsageError
from ..inputs import Within


class Verb(TyperCommand):
    """A verb that takes no empty text, for any option of any verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a call.

        Raises:
            UsageError: for an empty word.
        """
        for option in _empty(args):
            raise UsageError(f"{option} is empty: give it a value, or leave it out")
        rest: list[str] = super().parse_args(ctx, args)
        return rest


class Verbs(typer.Typer):
    """A group of verbs."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a verb under ``name``; ``options`` are Typer's."""
        return super().command(name, cls=Verb, **options)


def within(low: float, high: float = inf, *, above: bool = False) -> Callable[..., Any]:
    """Return the callback of an option that takes numbers from ``low`` to ``high`` (``above`` it)."""
    bounds = Within(low, high, above)

    def check(param: typer.CallbackParam, value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and number not in bounds:
                raise UsageError(f"{param.opts[0]} {number}: give a number {bounds}")
        return value

    return check


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Let ``verb`` take groups of options: dataclasses, which Typer does not know as parameters.

    Typer sees the fields of a group in the group's place; the verb receives the group, filled.  A group may
    hold groups.
    """

    @wraps(verb)
    def command(**given: Any) -> None:
        from ..progress import reported

        with reported(given.get("progress", "auto"), given.get("log_file")):
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


def _empty(words: Sequence[str]) -> Iterator[str]:
    """Yield the options, or the argument, that a call gives an empty text."""
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if not word:
            yield before if before.startswith("-") and before != "--" else "an argument"
        elif word.startswith("--") and equals and not value:
            yield option
