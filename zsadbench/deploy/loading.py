"""A predictor by its name or from its file: what three lines of Python need."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..text import terminal
from ..views import Predictor, Setup, Threshold, check_alone, check_fits, parse_roi, read_threshold, recalled
from .model import load_model

OF_A_FILE = {"tile", "overlap", "roi", "batch_size", "workers"}
"""What may be said beside an exported file; all else is in it."""


def load_predictor(
    method: str | Path,
    words: str | None = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    activation: str | None = None,
    checkpoint: str | Path | None = None,
    prompts: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    threshold: float | str | Path | Threshold | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    roi: Sequence[int] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Predictor:
    """Return what ``zsad predict`` predicts with, to be called with images in memory.

    >>> p = load_predictor("anoclip", words="metal nut")  # doctest: +SKIP
    >>> r = p(image)  # doctest: +SKIP
    >>> r.score, r.map, r.overlay(), r.decision  # doctest: +SKIP

    ``method`` is an id, ``id@variant`` or ``FILE.py:Class``; ``words`` say what is seen; ``settings`` are
    those of ``--set``, and the other keywords the options of that name; ``roi`` is x, y, width, height in
    pixels.  The CLIP is loaded with the first image, once.

    ``method`` may also be a file of ``zsad export``, named ``.onnx``: onnxruntime runs it, torch is not
    imported, and of the keywords only ``threshold`` and those about parts of the image, batches and
    ``workers`` remain, for all else is in the file.

    ``threshold`` is the score above which ``decision`` is "NG": a number, or a file of ``zsad calibrate`` (or
    what ``read_threshold`` made of one), which also brings the options it was found with and is refused with
    others.  What was chosen for want of a word is warned of.

    Raises:
        ZsadError: for a name, parameter or file that cannot be used.
    """
    texts = {
        "backbone": backbone,
        "weights": weights,
        "activation": activation,
        "device": device,
        "dtype": dtype,
    }
    stated: dict[str, Any] = {
        "words": words,
        **{name: None if value is None else str(value) for name, value in texts.items()},
        "checkpoint": checkpoint,
        "prompts": None if prompts is None else Path(prompts),
        "settings": settings,
        **{"tile": tile, "overlap": overlap, "batch_size": batch_size, "workers": workers},
        "roi": None if roi is None else parse_roi(",".join(map(str, np.ravel(roi)))),
    }
    given = {name: value for name, value in stated.items() if value is not None}
    _check(given)
    limit, path = _read(threshold)
    if is_model(method):
        predictor = load_file(Path(method), given)
    else:
        given["method"] = str(method)
        predictor = Predictor(recalled(limit, path, given) if limit else Setup(**given))
    if limit:
        check_fits(limit, predictor, path)
        predictor.limit = limit.value
    elif threshold is not None:
        check_alone(predictor)
        predictor.limit = threshold  # type: ignore[assignment]  # it refuses what is no number
    for remark in predictor.engine.remarks():
        warnings.warn(remark, stacklevel=2)
    return predictor


def is_model(name: str | Path) -> bool:
    """Whether a name is that of an exported file, not of a method."""
    return str(name).lower().endswith(".onnx")


def load_file(path: Path, given: Mapping[str, Any]) -> Predictor:
    """Return what predicts with a file of ``zsad export``; ``given`` are the fields that the user states.

    Raises:
        UsageError: for a field that is in the file already, and without onnxruntime.
        WeightsError: for a file that cannot be run.
    """
    if own := sorted(given.keys() - OF_A_FILE):
        raise UsageError(
            f"{terminal(path)}: an exported file holds its method, words and settings and runs on the CPU; "
            f"leave out: {', '.join(own)}"
        )
    return load_model(path, Setup("", **given))


def _read(threshold: object) -> tuple[Threshold | None, Path]:
    if isinstance(threshold, str | Path):
        return read_threshold(Path(threshold)), Path(threshold)
    return threshold if isinstance(threshold, Threshold) else None, Path("threshold")


def _check(given: Mapping[str, Any]) -> None:
    """Refuse what would be taken for something else, or fail far from here."""
    if not isinstance(given.get("words", ""), str):
        raise UsageError(f"words {given['words']!r}: give one text, as in 'metal nut'")
    if not isinstance(given.get("settings", {}), Mapping):
        raise UsageError(f"settings {given['settings']!r}: give names and values, as in {{'size': 336}}")
    for name in (name for name, value in given.items() if value == "" and name != "words"):
        raise UsageError(f"{name} is empty: give it a value, or leave it out")
