"""Every exception of the toolkit.

ZsadError                 base: one line that says what, where and what to do
├── UsageError            an option, name or value that cannot be used
├── DatasetError          a description, folder or image file
├── MethodError           a method, its card or its parameters
├── WeightsError          CLIP weights or a checkpoint
├── RecordError           stored evidence, records or boards
├── MetricError           maps, masks, labels or scores handed to the metrics
└── Interrupted           the user's Ctrl-C, with what is kept and how to go on

The command line prints the message without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 40
"""More names than this are not listed in a message."""


class ZsadError(Exception):
    """Base of all errors a user can cause or cure; exit code 2."""

    exit_code = 2


class UsageError(ZsadError):
    """An option, a name or a value that cannot be used."""


class DatasetError(ZsadError):
    """A dataset description, a folder or an image that cannot be used."""


class MethodError(ZsadError):
    """A method, its card or one of its parameters is wrong."""


class WeightsError(ZsadError):
    """Weights or a checkpoint that cannot be had or do not fit."""


class RecordError(ZsadError):
    """Stored evidence, a record or a board that cannot be read, written or compared."""


class MetricError(ZsadError, ValueError):
    """Input that no metric can be computed from."""


class Interrupted(ZsadError):
    """The user interrupted what was done; the text says how to go on.  Exit code 130."""

    exit_code = 130


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of a device or of the machine is used up."""
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's own, which is not imported for it
        or (isinstance(error, RuntimeError) and ("not enough memory" in words or "allocate memory" in words))
    )


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, else the known names if they are few."""
    choices = {choice.lower(): choice for choice in sorted(known)}
    near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{choices[near[0]]}'?"
    return f" Known: {', '.join(sorted(choices.values()))}." if 0 < len(choices) <= MANY else ""
