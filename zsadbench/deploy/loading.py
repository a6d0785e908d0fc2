"""A predictor by its name: what three lines of Python need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..views import Predictor, Setup, Threshold, check_alone, check_fits, read_threshold, recalled


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
    roi: tuple[int, int, int, int] | None = None,
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
    those of ``--set``, and the other keywords the options of that name.  ``roi`` is left, top, right,
    bottom in pixels.  ``threshold`` is the score above which ``decision`` is "NG": a number, or a file of
    ``zsad calibrate`` (or what ``read_threshold`` made of one), which also brings the options it was found
    with and is refused with others.  The CLIP is loaded with the first image, once.

    Raises:
        ZsadError: for a name, parameter or file that cannot be used.
    """
    stated: dict[str, Any] = {
        "method": str(method),
        "words": words,
        "backbone": backbone,
        "weights": weights,
        "activation": activation,
        "checkpoint": checkpoint,
        "prompts": Path(prompts) if prompts else None,
        "settings": settings,
        **{"tile": tile, "overlap": overlap, "roi": roi},
        **{"device": device, "dtype": dtype, "batch_size": batch_size, "workers": workers},
    }
    given = {name: value for name, value in stated.items() if value is not None}
    if threshold is None or isinstance(threshold, int | float):
        predictor = Predictor(Setup(**given), limit=threshold)
        if threshold is not None:
            check_alone(predictor)
        return predictor
    path = threshold if isinstance(threshold, str | Path) else "threshold"
    limit = read_threshold(Path(path)) if isinstance(threshold, str | Path) else threshold
    if not isinstance(limit, Threshold):
        raise UsageError(
            f"threshold: {type(threshold).__name__} is none; give a number or a file of zsad calibrate"
        )
    predictor = Predictor(recalled(limit, Path(path), given), limit=limit.value)
    check_fits(limit, predictor, Path(path))
    return predictor
