"""zsadbench: compare CLIP-based zero-shot anomaly detection methods.

>>> import zsadbench
>>> frame = zsadbench.run(["clip", "anoclip"], "mvtec")  # doctest: +SKIP

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .board import compare
    from .foreign import score_maps
    from .method import Backbone, Batch, Evidence, Method, Observer, Preprocess
    from .registry import load_method
    from .runs import run
    from .samples import Sample, load_dataset
    from .scores import score
    from .trainruns import train

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "method",
    "Batch": "method",
    "Evidence": "method",
    "Method": "method",
    "Observer": "method",
    "Preprocess": "method",
    "Sample": "samples",
    "compare": "board",
    "load_dataset": "samples",
    "load_method": "registry",
    "run": "runs",
    "score": "scores",
    "score_maps": "foreign",
    "train": "trainruns",
}
__all__ = [
    "Backbone",
    "Batch",
    "Evidence",
    "Method",
    "Observer",
    "Preprocess",
    "Sample",
    "compare",
    "load_dataset",
    "load_method",
    "run",
    "score",
    "score_maps",
    "train",
]

# In a checkout, methods/, datasets/ and results/ lie beside the package (a wheel carries them inside it).
_checkout = Path(__file__).parents[1]
if (_checkout / "methods").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'zsadbench' has no attribute '{name}'")
