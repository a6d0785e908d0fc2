"""The three real datasets end to end, 24 images each, on a miniature backbone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit import tiny
from zsadbench.engine import encoder
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute

DATA = os.environ.get("ZSAD_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZSAD_DATA names no folder with brainmri, headct and mtd")


@pytest.mark.parametrize(("dataset", "pixels"), [("mtd", True), ("brainmri", False), ("headct", False)])
def test_from_images_to_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, pixels: bool
) -> None:
    monkeypatch.setattr(
        encoder, "load_clip", lambda backbone, *_: tiny.clip(backbone.name, backbone.activation)
    )
    request = Request(
        backbone="tiny-l14", weights="random", limit=24, out=tmp_path, quiet=True, settings={"scales": "2"}
    )
    outcome = execute(["clip", "winclip"], [dataset], request)
    assert not outcome.failed
    for record in outcome.records:
        (row,) = record.categories.values()
        assert row["normal"] + row["anomalous"] == 24 and min(row["normal"], row["anomalous"]) >= 8
        assert 0 < row["image_auroc"] < 1
        assert (row["pixel_auroc"] is not None) == pixels
        if pixels:
            assert 0 < row["pixel_aupro"] < 1
        else:
            assert row["reasons"]["pixel_auroc"] == "the dataset has no masks"
