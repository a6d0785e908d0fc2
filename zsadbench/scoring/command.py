"""The words of ``zsad run`` that repeat what a record holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..method import as_text

OBSERVED = {
    "data": "--data",
    "category": "--category",
    "limit": "--limit",
    "settings": "--set",
    "checkpoint": "--checkpoint",
    "allow_seen": "--allow-seen",
    "backbone": "--backbone",
    "weights": "--weights",
    "activation": "--activation",
    "wording": "--wording",
    "words": "--words",
    "prompts": "--prompts",
    "device": "--device",
    "dtype": "--dtype",
    "batch_size": "--batch-size",
    "skip_bad": "--skip-bad",
    "allow_missing": "--allow-missing",
    "follow_outside": "--follow-outside",
}
"""Options that decide what is observed, by the names that ``observed`` takes."""

_EVALUATED = {
    "protocol": "--protocol",
    "size": "--size",
    "mask_resize": "--mask-resize",
    "limits": "--aupro-limit",
    "exact": "--exact-maps",
    "map_parameters": "--set",
    "metrics": "--metric",
}


OPTIONS = frozenset({"--method", "--dataset", *OBSERVED.values(), *_EVALUATED.values()})
"""All options that may stand among the words."""


def observed(method: str, dataset: str, options: Mapping[str, Any]) -> list[str]:
    """Return the words that observe again; ``options`` are those of :data:`OBSERVED` that were given."""
    return ["--method", method, "--dataset", dataset, *_words(OBSERVED, options)]


def evaluated(protocol: str, options: Mapping[str, Any]) -> list[str]:
    """Return the words that score again; ``options`` are the overrides ``scoring.protocol`` takes."""
    return _words(_EVALUATED, {"protocol": protocol, **options})


def _words(names: Mapping[str, str], options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in _option(names[name], value)]


def _option(name: str, value: Any) -> Iterator[str]:
    if value is True:
        yield name
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from (name, f"{key}={as_text(one)}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from (name, str(one))
    elif value not in (None, False, ""):
        yield from (name, str(value))
