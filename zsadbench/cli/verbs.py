"""What holds for every verb: no word is empty, numbers lie within bounds, options come in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def _empty(words: Sequence[str]) -> Iterator[str]:
    """Yield the options, or the argument, that a call gives an empty text."""
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if not word:
            yield before if before.startswith("-") and before != "--" else "an argument"
        elif word.startswith("--") and equals and not value:
            yield option
