"""One call for arrays at hand: image and pixel metrics of one category."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .curve import Curve
from .fixed import NO_NORMALS, Spread, image_threshold, pixel_threshold
from .ids import spro_limit
from .image import image_metrics, image_reasons
from .inputs import as_labels, as_mask, as_scores
from .pixel import PixelMetrics
from .regions import Defect


class MetricWarning(UserWarning):
    """Input that metrics can be computed from, but that looks marked."""


class Evaluation(dict[str, float | None]):
    """Metric id -> value in [0, 1], None where undefined; with what else is known of the category."""

    reasons: dict[str, str]
    """Why a value is None."""
    warnings: list[str]
    """What deserves a look, such as labels that disagree with masks."""
    images: list[dict[str, Any]]
    """One row per image, in the order given (see :meth:`PixelMetrics.per_image`); empty without masks."""
    curve: Curve | None
    """The pixel curve, to plot; None without masks."""


def evaluate(
    maps: Any,
    masks: Any = None,
    labels: Any = None,
    scores: Any = None,
    *,
    image_ids: Sequence[str] | None = None,
    limits: Sequence[float] = (0.3, 0.05),
    connectivity: int = 8,
    aupimo: tuple[float, float] | None = (1e-5, 1e-4),
    resize: str | None = None,
    backend: str = "auto",
    metrics: Sequence[str] = (),
    normals: Sequence[Any] | None = None,
    normal_scores: Any = None,
    defects: Sequence[Sequence[tuple[Any, float]]] | None = None,
) -> Evaluation:
    """Return the exact image and pixel metrics of one category.

    ``maps`` N anomaly maps, higher is more anomalous: one (N, H, W) array or tensor, or a sequence of
    (H, W) of different sizes.  ``masks`` N ground-truth masks of the same sizes, bool or integer, 0 =
    normal; an entry may be None for an image labelled normal.  ``labels`` (N,) 0 or 1, taken from the
    masks if not given; ``scores`` (N,) image scores.  Without ``masks`` the pixel metrics are None,
    without ``scores`` the image metrics; ``reasons`` says so.  Scores and maps rank in
    double precision wherever float32 would make equal what differs.

    ``limits`` are the AUPRO limits, ``aupimo`` the AUPIMO interval; ``resize="bilinear"`` brings maps
    to the size of their mask; ``backend`` is auto, numba, numpy or torch (same digits).  ``image_ids``
    name images in rows and errors, by default their positions.  ``metrics`` are further ids:
    ``image_pg@n``, ``image_pb@n`` (n in percent) and ``image_ece``, see :func:`image_metrics`, and
    ``pixel_segf1`` and ``image_classf1``, F1 at the mean plus three standard deviations of the scores of
    normal validation images: ``normals`` are their maps, each (H, W), ``normal_scores`` (m,) their image
    scores.  ``pixel_spro``, or ``pixel_spro@0.05`` up to that rate, is the area under saturated overlap
    (MVTec LOCO AD): ``defects`` are, for each image, its regions as pairs of a mask of the map's size and
    the saturation, the number of its pixels that must be found.

    Raises :class:`MetricError` for NaN or infinity, for sizes or lengths that differ, and where labels
    are neither given nor to be had from masks.  Warns (:class:`MetricWarning`) where labels and masks
    disagree.

    >>> import numpy as np
    >>> maps = np.zeros((2, 4, 4)); maps[1, :2] = 1
    >>> masks = np.zeros((2, 4, 4), bool); masks[1, :1] = True
    >>> result = evaluate(maps, masks, labels=[0, 1], scores=maps.max(axis=(1, 2)))
    >>> result["image_auroc"], result["pixel_ap"]
    (1.0, 0.5)
    """
    ids = [str(name) for name in (range(len(maps)) if image_ids is None else image_ids)]
    _check_lengths(maps=maps, image_ids=ids, masks=masks, labels=labels, scores=scores, defects=defects)
    if masks is None and labels is None:
        raise MetricError("neither masks nor labels given: nothing says which images are anomalous")
    image_scores = None if scores is None else as_scores(scores, ids)
    is_anomalous = None if labels is None else as_labels(labels)
    spro_limits = [limit for name in metrics if (limit := spro_limit(name)) is not None]
    of_image = [name for name in metrics if name != "pixel_segf1" and spro_limit(name) is None]
    spreads = (
        Spread.of(one, str(number)) for number, one in enumerate(normals if normals is not None else ())
    )

    pixel = PixelMetrics(
        limits,
        connectivity,
        backend,
        "source",
        dict(zip(ids, maps, strict=True)).__getitem__,
        aupimo=aupimo,
        resize=resize,
        threshold=pixel_threshold(spreads) if "pixel_segf1" in metrics else None,
        spro_limits=spro_limits,
    )
    if masks is not None:
        known = [None] * len(ids) if is_anomalous is None else is_anomalous.tolist()
        truth = [partial(_truth, *given) for given in zip(masks, maps, known, ids, strict=True)]
        has_region = np.array([mask().any() for mask in truth], np.bool_)
        is_anomalous = has_region if is_anomalous is None else is_anomalous
        # Anomalous images first: then no map of a normal image is looked at twice.
        for i in np.argsort(~has_region, kind="stable"):
            score = None if image_scores is None else float(image_scores[i])
            own = [Defect(*pair) for pair in defects[i]] if defects is not None and spro_limits else []
            pixel.update(maps[i], truth[i](), ids[i], score=score, label=known[i], defects=own)
    scored = image_scores is not None
    fixed = None if normal_scores is None else image_threshold(normal_scores)
    image = image_metrics(image_scores if scored else [], is_anomalous if scored else [], of_image, fixed)

    result = Evaluation(image | pixel.compute())
    result.reasons = image_reasons(image) | pixel.reasons()
    if "pixel_segf1" in metrics and "pixel_segf1" not in result:
        result["pixel_segf1"], result.reasons["pixel_segf1"] = None, NO_NORMALS
    for name in result.reasons:
        if scores is None and name in image:
            result.reasons[name] = "no image scores given"
        elif masks is None and name not in image:
            result.reasons[name] = "no masks given"
    result.warnings = pixel.warnings
    rows = {row["image_id"]: row for row in pixel.per_image()}
    result.images = [rows[name] for name in ids if name in rows]
    result.curve = None if masks is None else pixel.curve()
    for message in result.warnings:
        warnings.warn(message, MetricWarning, stacklevel=2)
    return result


def _check_lengths(**given: Any) -> None:
    lengths = {name: len(values) for name, values in given.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise MetricError(f"one of each per image is wanted, but there are {lengths}")


def _truth(mask: Any, values: Any, label: bool | None, name: str) -> NDArray[np.bool_]:
    """Return a mask as bool; a missing one is empty if its image is labelled normal."""
    if mask is not None:
        return as_mask(mask, f"image '{name}'")
    if label is False:
        return np.zeros(np.shape(values)[-2:], np.bool_)
    raise MetricError(f"image '{name}' has no mask and is not labelled normal: give its mask")
