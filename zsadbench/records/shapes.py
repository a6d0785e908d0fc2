"""What records and observations look like: which keys they have, of which types, and how large they may be.

A results folder may come from anywhere.  What passes here can be read without a second look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from ..errors import RecordError

Shape = Mapping[str, tuple[type, ...]]
"""Path of keys -> types. ``*`` is every entry of a list or table; a key with a ``?`` may be missing."""

LARGEST = 64 << 20
"""Bytes of a file of JSON: numbers of images stand in tables beside it."""
_DEEPEST, _LONGEST = 64, 100_000
_MISSING = object()
_NUMBER = (int, float)

OBSERVATION_KEYS: Shape = {
    "observation": (str,),
    "method": (dict,),
    "method.id": (str,),
    "method.?variant": (str,),
    "method.?version": (int, str),
    "method.?spec": (str,),
    "method.?foreign": (bool,),
    "method.?transductive": (bool,),
    "method.?order_dependent": (bool,),
    "method.?source_sha256": (str,),
    "method.?parameters": (dict,),
    "method.?parameters.?seed": (int, NoneType),
    "method.?parameters.?preprocess": (dict,),
    "backbone": (dict, NoneType),
    "backbone.?name": (str,),
    "backbone.?weights": (str,),
    "backbone.?sha256": (str,),
    "?checkpoint": (dict, NoneType),
    "?checkpoint.?file": (str,),
    "?checkpoint.?address": (str,),
    "?checkpoint.?source": (str,),
    "dataset": (dict,),
    "dataset.id": (str,),
    "dataset.digest": (str,),
    "dataset.contents": (str,),
    "dataset.?title": (str,),
    "dataset.?samples": (int,),
    "dataset.?mask_positive": (str,),
    "dataset.?selection": (dict, NoneType),
    "dataset.?skipped": (list,),
    "dataset.?skipped.*": (str,),
    "?wordings": (dict,),
    "?wordings.*": (str,),
    "?failed": (list,),
    "?failed.*": (dict,),
    "?failed.*.key": (str,),
    "?failed.*.reason": (str,),
    "?seed": (int, NoneType),
    "?marks": (list,),
    "?marks.*": (str,),
    "?environment": (dict,),
    "?environment.?dtype": (str,),
    "?environment.?device": (str,),
    "?seconds": (dict,),
    "?seconds.*": _NUMBER,
    "?complete": (bool,),
    "?created": (str,),
    "?family": (str,),
    "?command": (list,),
    "?command.*": (str,),
    "?seal": (str,),
}
RUN_KEYS: Shape = {
    "method.spec": (str,),
    "method.version": (int, str),
    "method.parameters": (dict,),
    "dataset.spec": (str,),
    "dataset.root": (str,),
    "dataset.domain": (str,),
    "failed": (list,),
}
"""What else an observation has whose maps can be rendered again."""
RULE_KEYS: Shape = {
    "size": (int, str),
    "mask_resize": (str,),
    "image_score": (str,),
    "aupro_limits": (list,),
    "connectivity": (int,),
    "legacy": (bool,),
    "exact_maps": (bool,),
    "map_parameters": (dict,),
    "?metrics": (list,),
    "?metrics.*": (str,),
}
"""What a protocol says by which maps are rendered again."""
RECORD_KEYS: Shape = {
    "record": (str,),
    "observation": (dict,),
    "protocol": (dict,),
    "protocol.id": (str,),
    "protocol.version": (int,),
    "protocol.?size": (int, str),
    "protocol.?mask_resize": (str,),
    "protocol.?mask_positive": (str,),
    "protocol.?image_score": (str,),
    "protocol.?aupro_limits": (list,),
    "protocol.?aupro_limits.*": _NUMBER,
    "protocol.?connectivity": (int,),
    "protocol.?legacy": (bool,),
    "protocol.?exact_maps": (bool,),
    "protocol.?map_parameters": (dict,),
    "protocol.?metrics": (list,),
    "protocol.?metrics.*": (str,),
    "?validation": (dict,),
    "?validation.?contents": (str,),
    "metric_version": (int,),
    "categories": (list,),
    "categories.*": (dict,),
    "categories.*.category": (str,),
    "categories.*.?normal": (int,),
    "categories.*.?anomalous": (int,),
    "categories.*.?failed": (int,),
    "categories.*.?reasons": (dict,),
    "categories.*.?reasons.*": (str,),
    "?masks": (str,),
    "?saturations": (str,),
    "?changed_code": (bool,),
    "?command": (list,),
    "?command.*": (str,),
    "?tables": (dict,),
    "?tables.*": (str,),
    "?warnings": (list,),
    "?warnings.*": (str,),
    "?seconds": (dict,),
    "?seconds.*": _NUMBER,
    "?created": (str,),
    "?seal": (str,),
}


def check_shape(path: Path, content: Mapping[str, Any], shape: Shape, remedy: str, prefix: str = "") -> None:
    """Refuse content that lacks a key or has one of another type.

    Raises:
        RecordError: naming file and key, and saying ``remedy``.
    """
    for keys, kinds in shape.items():
        for label, value in _reached(content, keys.split("."), prefix):
            if value is _MISSING:
                raise RecordError(f"{path}: the key '{label}' is missing; {remedy}.")
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
                raise RecordError(f"{path}: '{label}' is {_brief(value)}, not {wanted}; {remedy}.")


def _reached(value: Any, keys: Sequence[str], label: str) -> Iterator[tuple[str, Any]]:
    """Yield what stands at a path of keys, with the whole path of each; nothing where it may be missing."""
    if not keys:
        yield label.rstrip("."), value
        return
    key, rest = keys[0].lstrip("?"), keys[1:]
    if key == "*":
        for name, inner in _entries(value):
            yield from _reached(inner, rest, f"{label}{name}.")
    elif isinstance(value, Mapping) and key in value:
        yield from _reached(value[key], rest, f"{label}{key}.")
    elif isinstance(value, Mapping) and not keys[0].startswith("?"):
        yield f"{label}{key}", _MISSING


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def check_bounds(path: Path, content: Any, remedy: str) -> None:
    """Refuse JSON that is nested deeper, or has longer texts, than anything that was written by a run.

    Raises:
        RecordError: naming the file.
    """
    layer: list[Any] = [content]
    for _ in range(_DEEPEST):
        inner = [pair for value in layer for pair in _entries(value)]
        if any(isinstance(text, str) and len(text) > _LONGEST for pair in inner for text in pair):
            raise RecordError(f"{path}: has a text of more than {_LONGEST} characters; {remedy}.")
        layer = [value for _, value in inner if isinstance(value, dict | list)]
        if not layer:
            return
    raise RecordError(f"{path}: is nested deeper than {_DEEPEST} levels; {remedy}.")


def _brief(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.40}"
