"""What people look at: predictions, overlays, reports and figures.

Enter: images or records. Leave: pictures, pages, verdicts. Not known here: the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .calibrate import (
        Drift,
        Threshold,
        check_alone,
        check_enough,
        check_fits,
        differences,
        drift,
        fit,
        read_threshold,
        recalled,
        refit,
        require_scores,
        write_threshold,
    )
    from .engine import ClipEngine
    from .figures import bars_figure, choose, curves_figure, qualitative_figure
    from .inspect import describe, inspect_image, write_map
    from .overlay import heat, write_png
    from .predict import as_json, find_images, parse_scale, predict
    from .predictions import IMAGES, write_predictions
    from .predictor import Picture, Predictor, Scored
    from .replay import CategoryMaps, Replay
    from .report import build_report
    from .setup import DEFAULT_WORDS, NG, OK, Engine, Evidence, Prediction, Seen, Setup
    from .site import Site
    from .tiles import parse_roi

__all__ = [
    "DEFAULT_WORDS",
    "IMAGES",
    "NG",
    "OK",
    "CategoryMaps",
    "ClipEngine",
    "Drift",
    "Engine",
    "Evidence",
    "Picture",
    "Prediction",
    "Predictor",
    "Replay",
    "Scored",
    "Seen",
    "Setup",
    "Site",
    "Threshold",
    "as_json",
    "bars_figure",
    "build_report",
    "check_alone",
    "check_enough",
    "check_fits",
    "choose",
    "curves_figure",
    "describe",
    "differences",
    "drift",
    "find_images",
    "fit",
    "heat",
    "inspect_image",
    "parse_roi",
    "parse_scale",
    "predict",
    "qualitative_figure",
    "read_threshold",
    "recalled",
    "refit",
    "require_scores",
    "write_map",
    "write_png",
    "write_predictions",
    "write_threshold",
]
room(__name__)
