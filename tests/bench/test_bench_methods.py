"""The benchmark of methods measures what it says."""

from __future__ import annotations

from functools import cache

import pytest

from tests.kit import tiny
from zsadbench.bench.methods import bench_methods
from zsadbench.engine import encoder
from zsadbench.errors import UsageError


def test_rows_are_ratios_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    untapped = cache(lambda name, activation: tiny.clip(name, activation).alone())
    monkeypatch.setattr(
        encoder, "load_clip", lambda backbone, *_: untapped(backbone.name, backbone.activation)
    )
    said: list[str] = []
    found = bench_methods(
        ["clip", "anoclip"],
        say=said.append,
        backbone="tiny-l14",
        settings={"size": "28", "augment": "false", "interpolation": "bilinear"},
        images=4,
        pixels=48,
        repeats=1,
    )
    assert [row["method"] for row in found.rows] == ["clip", "anoclip"]
    for row in found.rows:
        assert row["ratio"] == pytest.approx(row["tower_images_per_s"] / row["images_per_s"])
        assert 0 < row["encode"] < 1 and 0 <= row["idle"] < 1
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"]
        assert row["of_product"] == pytest.approx(row["tflop_per_s"] / row["product_tflop_per_s"])
    clip, anoclip = (row["tflop"] * 1e12 for row in found.rows)
    # Both walk one tower, which keeps the value-value attention of its last 12 blocks for the second.
    tower = (
        12 * (2 * 5 * 128**2 + 4 * 5**2 * 128)
        + 24 * (2 * 5 * 12 * 128**2 + 4 * 5**2 * 128)
        + 2 * 4 * 128 * 3 * 14**2
    )
    # The last block's class token goes a way of its own; only clip asks for the patches that leave the block.
    token = 2 * 9 * 128**2 + 4 * 5 * 128  # of one token: attention, its projection, MLP
    assert clip == pytest.approx(tower + token, rel=0.005) and clip - anoclip == 5 * token
    assert found.shared is not None
    told = [line.rpartition(": ")[0] for line in said if line.endswith("images/s")]
    names = ["clip", "anoclip", "all together"]
    assert told == [f"{name}: {step}" for step in ("warm-up", "round 1 of 1") for name in names]
    outlook = [line for line in said if "the bare tower takes" in line]
    assert [line.partition(":")[0] for line in outlook] == ["clip", "anoclip"]
    assert said[0] == outlook[0] and "2 rounds take" in said[0]  # told before the first pipeline
    assert found.shared["ratio"] == pytest.approx(found.shared["joint_s"] / found.shared["sum_s"])


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 images"):
        bench_methods(["clip"], images=1)
