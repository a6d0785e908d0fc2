"""The life of a threshold: other rates from kept scores, files of before, and scores that move."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstwobign

from tests.kit import tiny, toy
from tests.kit.terminal import call
from zsadbench.engine import encoder
from zsadbench.errors import RecordError, UsageError
from zsadbench.views.calibrate import (
    FEWEST,
    LEVEL,
    Threshold,
    drift,
    fit,
    read_threshold,
    refit,
    require_scores,
    write_threshold,
)

NORMAL = np.random.RandomState(0).normal(size=300).tolist()


def fresh(seed: int, count: int, shift: float = 0.0) -> list[float]:
    found: list[float] = np.random.RandomState(seed).normal(shift, size=count).tolist()
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "threshold.json"
    write_threshold(path, fit(NORMAL, 0.01, {"words": "nut"}, {"method": "clip"}), {"rule": "inductive"})
    return path


def of_before(path: Path) -> Path:
    """Take from a file what earlier versions did not write."""
    content = json.loads(path.read_text())
    del content["scores"]
    path.write_text(json.dumps(content, indent=2))
    return path


# --- other rates ---


@pytest.mark.parametrize("fpr", [0.01, 0.0034, 0.05, 0.29, 0.5])
def test_another_rate_needs_no_second_run(kept: Path, fpr: float) -> None:
    found, anew = (
        refit(read_threshold(kept), fpr, kept),
        fit(NORMAL, fpr, {"words": "nut"}, {"method": "clip"}),
    )
    assert (found.value, found.fpr, found.reached, found.upper) == (
        anew.value,
        fpr,
        anew.reached,
        anew.upper,
    )
    assert (found.images, found.identity, found.setup, found.scores) == (
        300,
        anew.identity,
        anew.setup,
        tuple(sorted(NORMAL)),
    )


def test_the_file_keeps_every_score_on_one_line(kept: Path) -> None:
    lines = kept.read_text().splitlines()
    assert sum('"scores"' in line for line in lines) == 1 and len(lines) < 40
    content = json.loads(kept.read_text())
    assert content["scores"] == sorted(NORMAL) and content["images"] == 300
    again = kept.with_name("again.json")
    found = refit(read_threshold(kept), 0.1, kept)
    write_threshold(again, found, found.about)
    assert json.loads(again.read_text())["about"] == {"rule": "inductive", "scored": content["created"]}
    twice = refit(read_threshold(again), 0.01, again)
    assert (twice.value, twice.about["scored"]) == (read_threshold(kept).value, content["created"])


def test_a_rate_that_so_many_images_cannot_tell_is_refused(kept: Path) -> None:
    with pytest.raises(UsageError, match=r"300 normal images cannot tell .* 0\.00333; give at least 400"):
        refit(read_threshold(kept), 0.0025, kept)
    assert refit(read_threshold(kept), 0.0025, kept, force=True).value > max(NORMAL)


def test_a_file_of_before_judges_and_says_what_it_lacks(kept: Path) -> None:
    found = read_threshold(of_before(kept))
    assert found.scores == () and found.verdict(9.0) == "NG" and found.images == 300
    for needs_scores in (lambda: refit(found, 0.1, kept), lambda: require_scores(found, kept)):
        with pytest.raises(UsageError, match=r"earlier version, which kept no scores .* calibrate again"):
            needs_scores()


@pytest.mark.parametrize("scores", [NORMAL[1:], [*NORMAL[1:], float("nan")], ["x"] * 300, 7, {"a": 1}])
def test_damaged_scores_are_named(kept: Path, scores: Any) -> None:
    content = json.loads(kept.read_text()) | {"scores": scores}
    kept.write_text(json.dumps(content))
    with pytest.raises(
        RecordError, match=r"threshold\.json: (does not hold a finite score|incomplete or damaged)"
    ):
        read_threshold(kept)


# --- drift ---


def test_the_statistic_is_the_largest_gap_below_the_threshold() -> None:
    limit = fit([float(n) for n in range(40)], 0.25, {})  # at 29.5: 30 scores below
    now = [n + 10.25 for n in range(25)]  # 20 of them below
    found = drift(limit, now)
    assert found.statistic == pytest.approx(11 / 30)  # 0 ... 10 are below all that are new
    assert (found.images, found.below, found.then_images, found.then_below) == (25, 20, 40, 30)
    assert (found.median, found.then_median) == (19.75, 14.5)
    root = (30 * 20 / 50) ** 0.5
    assert found.p == pytest.approx(kstwobign.sf(root * 11 / 30), rel=0.4)  # its limit for many scores


@pytest.mark.filterwarnings("error")
def test_an_exact_p_that_is_lost_in_rounding_is_not_warned_of() -> None:
    limit = fit([float(n) for n in range(28)], 1 / 27, {}, force=True)
    found = drift(limit, [n + 0.4 for n in range(27)])
    assert found.p == pytest.approx(1) and found.statistic == pytest.approx(1 / 27)


@pytest.mark.parametrize("defects", [0, 30, 150])
def test_defects_above_the_threshold_change_nothing(defects: int) -> None:
    limit, normal = fit(NORMAL, 0.01, {}), fresh(1, 200)
    alone, among = drift(limit, normal), drift(limit, [*normal, *fresh(2, defects, 9.0)])
    assert (among.statistic, among.p, among.below) == (alone.statistic, alone.p, alone.below)
    assert not among.moved and among.images == 200 + defects


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_moved_scores_are_told_with_numbers(shift: float) -> None:
    found = drift(fit(NORMAL, 0.01, {}), fresh(3, 200, shift))
    assert found.moved and found.p is not None and found.p < 1e-6 and found.median and found.then_median
    assert (found.median > found.then_median) == (shift > 0)
    assert found.words.startswith(
        f"scores have moved since calibration: Kolmogorov-Smirnov D = {found.statistic:.3f}"
    )
    assert f"p = {found.p:.2g}; {found.below} scores at or below the threshold" in found.words


def test_of_a_hundred_sound_batches_about_one_is_told() -> None:
    """The level holds, with three defects in ten images as well."""
    told = 0
    for seed in range(400):
        limit = fit(fresh(seed, 150), 0.02, {})
        told += drift(limit, [*fresh(10_000 + seed, 50), *fresh(seed, 20, 12.0)]).moved
    assert LEVEL == 0.01 and 0 <= told <= 12  # 4 are expected; more than 12 in 1 of 3,000 such tests


def test_too_few_scores_say_nothing_but_the_shares() -> None:
    limit = fit(NORMAL, 0.01, {})
    found = drift(limit, [*fresh(1, FEWEST - 1, -1.0), *[9.0] * 31])
    assert not found.moved and found.p is None and found.statistic is None
    assert (
        "19 of 50 scores now and 297 of 300 then are at or below the threshold, each needs 20" in found.words
    )
    assert "62.0% are above it, 1.0% when calibrated" in found.words
    assert drift(limit, []).words.startswith("drift is not judged: 0 of 0 scores")
    assert drift(limit, fresh(1, FEWEST, -1.0)).p is not None


def test_many_scores_have_a_p_too() -> None:
    """Beyond a million pairs by the limit distribution."""
    limit = fit(fresh(1, 4000), 0.01, {})
    assert (drift(limit, fresh(2, 4000)).p or 0) > LEVEL > (drift(limit, fresh(2, 4000, 0.2)).p or 1)


# --- the verbs ---


@pytest.fixture
def cached_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)


@pytest.fixture
def line(tmp_path: Path, cached_towers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Good parts by day, later and at dusk, and the threshold of the first; brightness is the score."""
    monkeypatch.chdir(tmp_path)
    levels = np.random.RandomState(0).randint(40, 100, 40)
    for folder, more in (("day", 0), ("later", 1), ("dusk", -20)):
        Path(folder).mkdir()
        for number, level in enumerate(levels):
            Image.new("RGB", (20, 20), (int(level) + more,) * 3).save(f"{folder}/{number:02}.png")
    words = ["--fpr", "0.05", "-m", toy.write(tmp_path), "--words", "nut", "-q"]
    assert call("calibrate", "--normal", "day", *words, "--out", "threshold.json") == 0
    yield tmp_path


def test_calibrate_from_a_file_scores_nothing(
    line: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("loaded towers though scores are kept")

    capfd.readouterr()
    monkeypatch.setattr(encoder, "load_clip", never)
    assert call("calibrate", "--from", "threshold.json", "--fpr", "0.25", "--out", "looser.json") == 0
    out = capfd.readouterr().out
    assert "% of 40 normal images were (25.00% allowed)" in out
    assert (
        "scores are inductive, from the image alone; the smallest rate so many images can tell is 2.50%"
        in out
    )
    old, new = (read_threshold(line / name) for name in ("threshold.json", "looser.json"))
    assert new.value < old.value and new.scores == old.scores and new.identity == old.identity
    assert sum(score > new.value for score in new.scores) <= 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fpr", "0.25"], "name the new file with --out"),
        (["--fpr", "0.01", "--out", "new.json"], "40 normal images cannot tell a rate of 0.01 from 0"),
        (
            ["--fpr", "0.25", "--normal", "day", "--out", "new.json"],
            "--from takes images, method and options",
        ),
        (
            ["--fpr", "0.25", "--words", "bolt", "--out", "new.json"],
            "--from takes images, method and options",
        ),
    ],
)
def test_what_does_not_go_with_kept_scores(
    line: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = Path("threshold.json").read_bytes()
    capfd.readouterr()
    assert call("calibrate", "--from", "threshold.json", *words) == 2
    assert message in capfd.readouterr().err
    assert Path("threshold.json").read_bytes() == before and not Path("new.json").exists()


def test_predict_tells_whether_scores_have_moved(line: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reference = ["--reference", "threshold.json", "-m", toy.write(line), "-q", "--json", "found.json"]
    capfd.readouterr()
    assert call("predict", "later", *reference) == 0
    assert "note: no drift is seen: Kolmogorov-Smirnov D = " in capfd.readouterr().err
    assert not json.loads(Path("found.json").read_text())["drift"]["moved"]
    assert call("predict", "dusk", *reference) == 0  # warned of, no other exit code
    assert "warning: scores have moved since calibration: Kolmogorov-Smirnov D = " in capfd.readouterr().err
    found = json.loads(Path("found.json").read_text())["drift"]
    assert set(found) == {
        *("statistic", "p", "images", "below", "median"),
        *("then_images", "then_below", "then_median", "moved"),
    }
    assert found["images"] == found["below"] == found["then_images"] == 40 and found["then_below"] == 38
    assert found["moved"] and found["p"] < LEVEL and found["median"] < found["then_median"]


def test_a_reference_of_other_scores_is_refused(line: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = ["-m", toy.write(line), "-q"]
    capfd.readouterr()
    assert call("predict", "later", "--reference", "threshold.json", *own, "--words", "bolt") == 2
    assert "threshold.json: found with words nut, now bolt" in capfd.readouterr().err
    other = ["--fpr", "0.05", *own, "--words", "bolt", "--out", "bolt.json"]
    assert call("calibrate", "--normal", "day", *other) == 0
    both = ["--threshold", "threshold.json", "--reference", "bolt.json"]
    assert call("predict", "later", *both, *own) == 2
    assert "bolt.json: found with words bolt, now nut" in capfd.readouterr().err
    assert call("predict", "later", "--reference", of_before(Path("bolt.json")), *own) == 2
    assert "bolt.json: written by an earlier version, which kept no scores" in capfd.readouterr().err


def test_threshold_and_reference_together_judge_and_warn(
    line: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("calibrate", "--from", "threshold.json", "--fpr", "0.5", "--out", "strict.json") == 0
    capfd.readouterr()
    both = ["--threshold", "strict.json", "--reference", "threshold.json", "-m", toy.write(line), "-q"]
    assert call("predict", "day", *both) == 1
    out, err = capfd.readouterr()
    assert 10 < out.count("  NG  ") <= 20 and "no drift is seen: Kolmogorov-Smirnov D = 0.000, p = 1;" in err


def test_a_threshold_says_what_it_is() -> None:
    assert Threshold(0.5, 0.1, 0.05, 0.2, 20, {}).smallest_fpr == 0.05
