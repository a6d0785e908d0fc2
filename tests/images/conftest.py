"""Real images, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of the real data sets, or skip the test."""
    folder = os.environ.get("ZSAD_DATA")
    if not folder:
        pytest.skip("ZSAD_DATA is not set: no real images")
    return Path(folder)
