"""The mean and the deviation of colour that weights were trained with; wrong ones only give bad numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..inputs import OPENAI_MEAN, OPENAI_STD, Backbone
from .archives import is_torchscript
from .downloads import tags
from .weights import is_file

Colour = tuple[float, float, float]
Normalisation = tuple[Colour, Colour]

OPENAI = (OPENAI_MEAN, OPENAI_STD)
_AS_OPENAI = ("openai", "random", "laion400m_e31", "laion400m_e32")
"""Weights of the shipped cards, answered without importing open_clip."""


def normalisation(backbone: Backbone) -> Normalisation:
    """Return mean and standard deviation of ``backbone``'s weights, per channel of values in [0, 1].

    A tag has those it is published with, noise and the shipped weights OpenAI's.  A file does not say: it has
    those that all published weights of its backbone and activation share.

    Raises:
        WeightsError: for a file where they differ, saying how to state them.
    """
    name, tag = backbone.name, backbone.weights
    if Path(name).suffix == ".json":
        return _of(_stated(Path(name)))
    if tag.partition(":")[0] in _AS_OPENAI or tag == name:
        return OPENAI
    if not is_file(tag):
        return _of(_entry(name, tag))
    if is_torchscript(Path(tag).expanduser()):  # OpenAI's own form
        return OPENAI
    return _of_file(backbone)


def _of_file(backbone: Backbone) -> Normalisation:
    known = [_entry(backbone.name, tag) for tag in tags(backbone.name)]
    quick = {bool(one.get("quick_gelu")) for one in known}
    if backbone.activation == "auto" and len(quick) == 2:
        return OPENAI  # loading asks for the activation first
    wanted = quick if backbone.activation == "auto" else {backbone.activation == "quick_gelu"}
    found = {_of(one) for one in known if bool(one.get("quick_gelu")) in wanted}
    if len(found) > 1:
        options = [f"--set mean={_text(mean)} --set std={_text(std)}" for mean, std in sorted(found)]
        raise WeightsError(
            f"{backbone.weights}: backbone '{backbone.name}' is published with several means and deviations "
            f"of colour and a file does not say which; state them: {' or '.join(options)}"
        )
    return found.pop() if found else OPENAI


def _text(values: Colour) -> str:
    return ",".join(map(str, values))


def _entry(name: str, tag: str) -> dict[str, Any]:
    from open_clip import pretrained

    return dict(pretrained.get_pretrained_cfg(name, tag) or {})


def _stated(path: Path) -> dict[str, Any]:
    """Return what an architecture file says of its input, as open_clip's configs on the hub do."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8")).get("preprocess_cfg")
    except (OSError, ValueError, AttributeError):  # loading says what is wrong with the file
        return {}
    return dict(stated) if isinstance(stated, dict) else {}


def _of(table: dict[str, Any]) -> Normalisation:
    return _three(table.get("mean")) or OPENAI_MEAN, _three(table.get("std")) or OPENAI_STD


def _three(values: Any) -> Colour | None:
    """Return three numbers, or None where a published table has none."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    red, green, blue = map(float, values)
    return red, green, blue
