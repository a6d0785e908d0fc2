"""``predict``: from image files to scores and overlays, with no dataset, no label and no mask."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data import list_images
from ..errors import DatasetError, RecordError, UsageError
from ..files import write_atomic
from ..images import decode, to_rgb
from ..progress import Progress
from ..text import terminal
from .calibrate import Threshold
from .overlay import LONGEST, Scale, draw_scale, encoded, overlay, write_png
from .predictor import Predictor
from .setup import Evidence, Prediction, verdict

SOFTWARE = "zsadbench"
"""What an overlay says of who wrote it."""


def find_images(
    paths: Sequence[Path], out: Path | None = None, say: Callable[[str], None] | None = None
) -> list[Path]:
    """Return the image files among ``paths`` and in and below the folders among them, each once.

    Overlays that earlier calls left in a folder below one of ``paths`` are not among them.  ``say`` is
    told what is left out.

    Raises:
        DatasetError: for a path that does not exist, or a folder that cannot be read or has no image.
        UsageError: if nothing is named, or overlays in ``out`` would lie among the images.
    """
    if not paths:
        raise UsageError("name image files or folders: zsad predict PATH... --method ID")
    for path in paths:
        if path.is_dir():
            try:
                next(path.iterdir(), None)
            except OSError as error:
                raise DatasetError(
                    f"{terminal(path)}: the folder cannot be read ({error.strerror}); check its permissions"
                ) from None
    listed, notes = list_images(paths)
    found = [path for path in dict.fromkeys(listed) if not _is_overlay_below(path, paths)]
    if surplus := len(dict.fromkeys(listed)) - len(found):
        notes.append(f"{surplus} overlays of earlier calls are left out")
    if not found:
        raise DatasetError("there are only overlays of earlier calls; name the images, or their folder")
    if say:
        for note in notes:
            say(note)
    if out is not None and out.resolve() in {path.resolve().parent for path in found}:
        raise UsageError(
            f"--out {terminal(out)}: the images lie there too, and overlays could replace them; name another"
        )
    return found


def _is_overlay_below(path: Path, paths: Sequence[Path]) -> bool:
    """Tell whether a file, in a folder below one of ``paths``, is an overlay that ``predict`` has written.

    Pictures of a report count as such.
    """
    from .site import MARKER  # pages need more than predictions do

    if path in paths or path.parent in paths:
        return False
    if any((folder / MARKER).is_file() for folder in path.parents if set(folder.parents) & set(paths)):
        return True
    if path.suffix.lower() != ".png":
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE and "Scale" in picture.info
    except Exception:  # whatever is wrong with it is told when it is read
        return False


def predict(
    predictor: Predictor,
    images: Sequence[Path],
    *,
    out: Path | None = None,
    scale: Scale | None = None,
    threshold: Threshold | None = None,
    thumbnails: Path | None = None,
    quiet: bool = False,
) -> tuple[list[Prediction], Scale]:
    """Score ``images`` and, with ``out``, write an overlay of each; return both with the scale used.

    All overlays of a call have one scale: ``scale``, else the lowest to the highest map value of them all.
    ``threshold`` gives the verdicts; ``thumbnails`` is a folder for small pictures beside the overlays.

    Raises:
        ZsadError: for anything that would fail for every image as well, or a folder that cannot be written.
    """
    if out:
        _make(out)
    parts = [(f"{predictor.engine.id}: scores", len(images))]
    parts += [(f"{predictor.engine.id}: overlays", len(images))] if out else []
    found: list[Prediction] = []
    with tempfile.TemporaryDirectory(prefix="zsad-") as folder, Progress(parts, quiet=quiet) as progress:
        progress.start()
        limit = threshold.value if threshold else predictor.limit
        for number, (prediction, evidence) in enumerate(predictor.observe(images, progress.step)):
            found.append(dataclasses.replace(prediction, verdict=verdict(prediction.score, limit)))
            if out and evidence:
                _keep(Path(folder, f"{number}.npz"), evidence)
            progress.advance(1)
        scale = scale or span(found)
        if out:
            progress.start()
            names = overlay_names(images)
            for number, prediction in enumerate(found):
                if prediction.error is None:
                    with np.load(Path(folder, f"{number}.npz"), allow_pickle=False) as kept:
                        values = predictor.map_of(prediction, dict(kept))
                    small = thumbnails / names[number] if thumbnails else None
                    found[number] = paint(prediction, values, scale, out / names[number], small)
                progress.advance(1)
    return found, scale


def _keep(path: Path, evidence: Evidence) -> None:
    """Put evidence aside until the scale of all overlays is known.

    Raises:
        RecordError: if the disk is full.
    """
    try:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in evidence.items()}
        np.savez(path, **arrays)
    except OSError as error:
        raise RecordError(
            f"{path}: cannot be written ({error.strerror}); free space, or set TMPDIR to a larger disk"
        ) from None


def _make(folder: Path) -> None:
    """Make the folder before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{terminal(folder)}: the folder cannot be made ({error.strerror}); name another with --out"
        ) from None


def paint(
    prediction: Prediction,
    values: NDArray[np.float32],
    scale: Scale,
    path: Path,
    small: Path | None = None,
) -> Prediction:
    """Write the overlay of one image to ``path``; where the scale bar finds no room, a note says so.

    With ``small``, thumbnails of the photograph and the overlay go beside it.
    """
    if prediction.tiles is None:
        raise UsageError(f"{terminal(prediction.path)}: has no map, because {prediction.error}")
    corner = prediction.tiles.region[:2]
    photo = to_rgb(decode(prediction.path, name=terminal(prediction.path), orient=True))
    picture = overlay(photo, values, scale, corner)
    thumbnails = _thumbnails(photo, picture, small) if small else ()
    notes = prediction.notes
    said = filter(None, (prediction.verdict, f"{prediction.score:.6g}", prediction.path.name))
    if not draw_scale(picture, values, scale, corner, "  ".join(said)):
        notes = (*notes, "too small for a scale bar in its overlay")
    about = {
        "Software": SOFTWARE,
        "Scale": f"{scale[0]!r} to {scale[1]!r}",
        "Score": repr(prediction.score),
        "Source": terminal(prediction.path.name),
    }
    if prediction.verdict:
        about["Verdict"] = prediction.verdict
    write_png(path, picture, about)
    return dataclasses.replace(prediction, overlay=path, thumbnails=thumbnails, notes=notes)


def _thumbnails(photo: Image.Image, picture: Image.Image, small: Path) -> tuple[Path, Path]:
    files = small.with_name(f"{small.name}-photo.webp"), small.with_name(f"{small.name}-map.webp")
    for file, image in zip(files, (photo, picture), strict=True):
        tiny = image.copy()
        tiny.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        write_atomic(file, encoded(tiny))
    return files


def span(predictions: Iterable[Prediction]) -> Scale:
    """Return the lowest and the highest map value of all predictions; 0 to 1 where there is none."""
    extremes = [prediction.extremes for prediction in predictions if prediction.error is None]
    if not extremes:
        return 0.0, 1.0
    return min(low for low, _ in extremes), max(high for _, high in extremes)


def overlay_names(images: Sequence[Path]) -> list[str]:
    """Return a file name for each image's overlay: its own, with more of it or a number where two clash."""
    taken: set[str] = set()
    names = []
    for path in images:
        numbered = (f"{path.name}-{number}.png" for number in count(2))
        choices = chain((f"{path.stem}.png", f"{path.name}.png"), numbered)
        name = next(name for name in choices if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def as_json(
    predictor: Predictor,
    predictions: Sequence[Prediction],
    scale: Scale,
    threshold: float | None,
) -> dict[str, Any]:
    """Return a call's results as JSON values; an image that failed has its ``error`` and null numbers."""
    return {
        "schema": 1,
        **predictor.about(),
        "scale": list(scale),
        "threshold": threshold,
        "images": [
            {
                "path": terminal(prediction.path),
                "sha256": prediction.sha256,
                "height": prediction.size[0] or None,
                "width": prediction.size[1] or None,
                "score": prediction.score,
                "verdict": prediction.verdict,
                "map_min": prediction.extremes[0] if prediction.error is None else None,
                "map_max": prediction.extremes[1] if prediction.error is None else None,
                "tiles": len(prediction.tiles.boxes) if prediction.tiles else 0,
                "overlay": terminal(prediction.overlay) if prediction.overlay else None,
                "notes": list(prediction.notes),
                "error": prediction.error,
            }
            for prediction in predictions
        ],
    }


def parse_scale(text: str) -> Scale:
    """Return the scale that ``min,max`` means.

    Raises:
        UsageError: if it is not two finite numbers in rising order.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"--scale {text}: give the lowest and the highest map value, as in --scale 0.2,0.8")
    return low, high
