"""zsadbench: compare CLIP-based zero-shot anomaly detection methods.

>>> import zsadbench
>>> frame = zsadbench.run(["clip", "anoclip"], "mvtec")  # doctest: +SKIP
>>> score = zsadbench.load_predictor("anoclip", words="metal nut")("photo.jpg").score  # doctest: +SKIP

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from .environment import VERSION as __version__
from .surface import room

if TYPE_CHECKING:
    from .boards import compare
    from .data import load_dataset
    from .deploy import load_predictor
    from .inputs import Backbone, Batch, Preprocess
    from .method import Evidence, Method, Observer, load_method
    from .run import run, score_maps
    from .samples import Sample
    from .scoring import score
    from .training import train

__all__ = [
    "Backbone",
    "Batch",
    "Evidence",
    "Method",
    "Observer",
    "Preprocess",
    "Sample",
    "__version__",
    "compare",
    "load_dataset",
    "load_method",
    "load_predictor",
    "run",
    "score",
    "score_maps",
    "train",
]


class _Beside:
    """Finds methods, datasets and results beside the package in a checkout; a wheel has them inside."""

    root = Path(__file__).parents[1]

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in (f"{__name__}.{folder}" for folder in ("methods", "datasets", "results")):
            return None
        return PathFinder.find_spec(name, [str(cls.root)])


if (_Beside.root / "methods").is_dir() and (_Beside.root / "pyproject.toml").is_file():
    sys.meta_path.append(_Beside)
room(__name__)
