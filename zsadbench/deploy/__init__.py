"""Methods put to work outside a benchmark: a predictor in Python, a file that runs without torch.

Enter: a method's name or an exported file, images in memory. Leave: scores, maps and decisions; model files
that are proven before they are kept. Not known here: datasets' layouts, boards, the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .export import Form
    from .loading import is_model, load_file, load_predictor
    from .model import ModelEngine, load_model, threshold_of
    from .proof import TOLERANCES, Proof, export, prove
    from .validation import Validation

__all__ = [
    "TOLERANCES",
    "Form",
    "ModelEngine",
    "Proof",
    "Validation",
    "export",
    "is_model",
    "load_file",
    "load_model",
    "load_predictor",
    "prove",
    "threshold_of",
]
room(__name__)
