"""zsadbench: compare CLIP-based zero-shot anomaly detection methods."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# In a checkout, methods/ and datasets/ lie beside the package (a wheel carries them inside it).
_checkout = Path(__file__).parents[1]
if (_checkout / "methods").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))
