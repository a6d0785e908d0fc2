"""The page of a call of ``predict``: every image with its score, the most anomalous first, and a table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..text import csv_cell, terminal
from .calibrate import Threshold
from .overlay import Scale, ramp
from .predictor import Predictor
from .setup import NG, OK, Prediction
from .site import Site

COLUMNS = ("image", "score", "verdict", "map_min", "map_max", "overlay", "notes", "error")
IMAGES = "images"
"""The folder of a page's pictures; like the page it is replaced by the next one."""


def by_score(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return predictions by falling score, equal ones by name, images without a score last."""
    return sorted(predictions, key=lambda one: (one.score is None, -(one.score or 0.0), str(one.path)))


def write_predictions(
    site: Site,
    predictor: Predictor,
    predictions: Sequence[Prediction],
    scale: Scale,
    threshold: Threshold | None = None,
) -> Path:
    """Write ``index.html`` and ``predictions.csv`` into the folder of ``site``; return the page.

    Raises:
        RecordError: if a file cannot be written.
    """
    ordered = by_score(predictions)
    site.write("predictions.csv", as_csv(ordered).encode())
    site.page(
        "index",
        "predictions.html",
        {
            "method": predictor.engine.id,
            "words": predictor.engine.words,
            "facts": _facts(predictor, ordered, threshold),
            "exhibits": [_exhibit(site, one) for one in ordered],
            "verdicts": threshold is not None,
            "scale": [f"{value:.6g}" for value in scale],
            "ramp": ramp(),
        },
    )
    return site.folder / "index.html"


def as_csv(ordered: Sequence[Prediction]) -> str:
    """Return predictions as CSV, one row an image, numbers at full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in ordered:
        low, high = one.extremes if one.error is None else ("", "")
        score = "" if one.score is None else repr(one.score)
        texts = (str(one.overlay or ""), "; ".join(one.notes), one.error or "")
        overlay, notes, error = (csv_cell(terminal(text)) for text in texts)
        row = [csv_cell(terminal(one.path)), score, one.verdict or "", low, high, overlay, notes, error]
        writer.writerow(row)
    return stream.getvalue()


def _facts(
    predictor: Predictor, ordered: Sequence[Prediction], threshold: Threshold | None
) -> dict[str, str]:
    (backbone, weights), failed = predictor.engine.tower, sum(one.error is not None for one in ordered)
    images = f"{len(ordered)}" + (f", {failed} of them could not be scored" if failed else "")
    facts = {
        "Images": images,
        "Backbone": f"{backbone}, weights {weights}",
        "Words in prompts": predictor.engine.words,
        "Score": f"{predictor.rule}; higher is more anomalous",
    }
    if threshold:
        counts = {verdict: sum(one.verdict == verdict for one in ordered) for verdict in (NG, OK)}
        facts["Verdict"] = f"{counts[NG]} NG, {counts[OK]} OK"
        facts["Threshold"] = threshold.words
    return facts


def _exhibit(site: Site, one: Prediction) -> dict[str, Any]:
    return {
        "name": terminal(one.path.name),
        "place": terminal(one.path),
        "score": "" if one.score is None else f"{one.score:.6g}",
        "value": "" if one.score is None else repr(one.score),
        "verdict": one.verdict or "",
        "notes": one.notes,
        "error": one.error,
        "overlay": _link(site, one.overlay) if one.overlay else "",
        "pictures": [_link(site, picture) for picture in one.thumbnails],
    }


def _link(site: Site, path: Path) -> str:
    """Return a file's address as seen from the page."""
    relative = os.path.relpath(path.resolve(), site.folder.resolve())
    return quote(Path(relative).as_posix())
