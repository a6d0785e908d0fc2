"""The speed measurement: its category, its rows, its ratios."""

from __future__ import annotations

import numpy as np
import pytest

from zsadbench.bench.metrics import BOOTSTRAP, CLASSICAL, bench_metrics, generate
from zsadbench.errors import MetricError


def test_the_generated_category_has_the_share_asked_for() -> None:
    maps, masks = generate(60, 80, 0.015)
    assert maps.shape == masks.shape == (60, 80, 80)
    assert maps.dtype == np.float32 and 0 <= maps.min() < maps.max() <= 1
    assert masks.any(axis=(1, 2)).sum() == 30
    assert masks.mean() == pytest.approx(0.015, rel=0.2)
    assert maps[masks > 0].mean() > maps[masks == 0].mean() + 0.1
    again, _ = generate(60, 80, 0.015)
    assert np.array_equal(maps, again)


def test_rows_are_ratios_to_the_classical_chain() -> None:
    rows = bench_metrics(images=8, size=96, repeats=1, backends=("numpy",), legacy_images=2)
    assert [row["chain"] for row in rows] == [
        "zsadbench, numpy",
        BOOTSTRAP,
        "scikit-learn",
        "200 thresholds",
        CLASSICAL,
    ]
    classical = rows[-1]
    assert classical["speedup"] == 1
    assert classical["cpu_seconds"] == rows[2]["cpu_seconds"] + rows[3]["cpu_seconds"]
    assert "scaled to 8" in rows[3]["note"]
    assert " x the first row" in rows[1]["note"]
    for row in rows:
        assert row["speedup"] == classical["cpu_seconds"] / row["cpu_seconds"]
        assert row["memory_mb"] is None or row["memory_mb"] >= 0
    assert rows[0]["speedup"] > 1


def test_a_back_end_that_does_not_exist_is_refused() -> None:
    with pytest.raises(MetricError, match="unknown metrics back end"):
        bench_metrics(backends=("fortran",))
