"""A shallow method and its exported file, made once for all tests of the room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zsadbench.deploy import Form, export
from zsadbench.views import ClipEngine, Setup

SHALLOW = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 84, "layers": 4, "width": 128, "head_width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    path = tmp_path_factory.mktemp("towers") / "shallow.json"
    path.write_text(json.dumps(SHALLOW))
    return Setup("clip", "nut", str(path), "random", settings={"size": "42"}, workers=1)


@pytest.fixture(scope="session")
def torch_side(setup: Setup) -> ClipEngine:
    return ClipEngine(setup)


@pytest.fixture(scope="session")
def model(setup: Setup, torch_side: ClipEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "clip.onnx"
    found = export(setup, path, form=Form(limit=0.25), engine=torch_side)
    assert found.passed and found.score <= 1e-5 and found.map <= 1e-5
    assert (found.images, found.turned) == (9, 0) and found.pairs > 0
    return path
