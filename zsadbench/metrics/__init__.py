"""Exact metrics of anomaly detection, for this toolkit and for anyone else.

Everything comes from one :class:`Curve`, so no metric depends on a grid of thresholds, on the
scale of the scores or on the order of the images.  The usual ways in::

    evaluate(maps, masks, labels, scores)          # arrays or tensors at hand
    metrics = PixelMetrics()                       # one image after another
    metrics.update(map, mask, "bottle/003.png")
    metrics.compute()

``legacy`` reproduces the approximate figures other code bases print.  Neither torch nor pandas
is imported unless tensors come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .bootstrap import (
        FEW,
        FEWEST,
        REPLICATES,
        Interval,
        PixelHistograms,
        Reals,
        bin_edges,
        centred,
        image_replicates,
        interval,
        resample,
    )
    from .counters import check_backend
    from .curve import Curve
    from .evaluation import Evaluation, MetricWarning, evaluate
    from .fixed import NEEDS_NORMALS, NO_NORMALS, Spread, image_threshold, pixel_threshold
    from .ids import (
        AVERAGE_RANK,
        DERIVED,
        MAD,
        METRIC_VERSION,
        METRICS,
        MORE_IMAGE_METRICS,
        SEVEN,
        aupro_id,
        mean_of_seven,
        more_image_metrics,
        spro_limit,
        takes_percent,
        worth,
    )
    from .image import image_curve, image_metrics, image_reasons
    from .inputs import as_real
    from .legacy import (
        LegacyAupro,
        grid_f1,
        legacy_aupro200,
        legacy_aupro200_stream,
        rank_aupro,
        trapezoid_ap,
    )
    from .paired import (
        DeLong,
        Placements,
        bootstrap_p,
        delong,
        delong_p,
        holm,
        placements,
        places,
        wilcoxon_p,
    )
    from .pixel import PixelMetrics
    from .regions import Defect

__all__ = [
    "AVERAGE_RANK",
    "DERIVED",
    "FEW",
    "FEWEST",
    "MAD",
    "METRICS",
    "METRIC_VERSION",
    "MORE_IMAGE_METRICS",
    "NEEDS_NORMALS",
    "NO_NORMALS",
    "REPLICATES",
    "SEVEN",
    "Curve",
    "DeLong",
    "Defect",
    "Evaluation",
    "Interval",
    "LegacyAupro",
    "MetricWarning",
    "PixelHistograms",
    "PixelMetrics",
    "Placements",
    "Reals",
    "Spread",
    "as_real",
    "aupro_id",
    "bin_edges",
    "bootstrap_p",
    "centred",
    "check_backend",
    "delong",
    "delong_p",
    "evaluate",
    "grid_f1",
    "holm",
    "image_curve",
    "image_metrics",
    "image_reasons",
    "image_replicates",
    "image_threshold",
    "interval",
    "legacy_aupro200",
    "legacy_aupro200_stream",
    "mean_of_seven",
    "more_image_metrics",
    "pixel_threshold",
    "placements",
    "places",
    "rank_aupro",
    "resample",
    "spro_limit",
    "takes_percent",
    "trapezoid_ap",
    "wilcoxon_p",
    "worth",
]
room(__name__)
