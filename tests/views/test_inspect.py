"""What a run knows of one image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from tests.kit import tiny
from tests.kit.factory import make_folder
from zsadbench.cli import report as verbs
from zsadbench.engine import encoder
from zsadbench.errors import RecordError, UsageError
from zsadbench.records.evidence import EvidenceStore
from zsadbench.records.records import Record
from zsadbench.records.tables import ImageRow
from zsadbench.run.foreign import score_maps_record
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring.observation import score_run
from zsadbench.views.inspect import SIDE, describe, inspect_image, ranking, write_map
from zsadbench.views.overlay import heat

KEY = "bolt/test/hole/1.png"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    folder = tmp_path_factory.mktemp("inspect")
    make_folder(folder / "parts")
    request = Request(
        backbone="tiny-l14", weights="random", settings={"size": "42"}, out=folder / "results", quiet=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_clip", tiny.load)
        (found,) = execute(["clip"], [str(folder / "parts")], request).records
        yield found


@pytest.fixture
def run_dir(record: Record) -> Path:
    return record.path.parents[1]


def test_it_tells_what_the_files_hold(run_dir: Path, record: Record) -> None:
    found = inspect_image(run_dir, KEY)
    rows = {row.key: row for row in record.images()}
    row = rows[KEY]
    assert (found["category"], found["label"], found["words"]) == ("bolt", "anomalous", "bolt")
    assert found["score"] == row.image_score
    assert found["map"] == {"min": row.map_min, "max": row.map_max}
    scores = sorted(
        (other.image_score or 0.0 for other in rows.values() if other.category == "bolt"), reverse=True
    )
    assert (found["rank"], found["of"]) == (1 + scores.index(found["score"]), 6)
    part = EvidenceStore(run_dir).category([0])
    place = part.keys.index(KEY)
    assert found["evidence"]["score"] == pytest.approx(float(part.evidence["score"][place]))
    assert found["evidence"]["frame"] == [42, 42]
    grid = part.evidence["map"][place]
    assert found["evidence"]["map"] == {
        "shape": [3, 3],
        "min": pytest.approx(float(grid.min())),
        "mean": pytest.approx(float(grid.mean())),
        "max": pytest.approx(float(grid.max())),
    }
    assert found["sha256"] == part.hashes[place]


def test_neighbours_are_those_next_in_rank() -> None:
    scores = [0.1, 0.9, 0.5, 0.5, 0.3, 0.7]
    rows = [ImageRow(f"{n}.png", "a", n < 3, score, 0.0, 1.0) for n, score in enumerate(scores)]
    middle = ranking(rows[3], rows)
    assert (middle["rank"], middle["of"]) == (3, 6)  # a tie shares the better rank
    assert [one["key"] for one in middle["neighbours"]] == ["5.png", "2.png", "3.png", "4.png", "0.png"]
    assert [one["self"] for one in middle["neighbours"]] == [False, False, True, False, False]
    first = ranking(rows[1], rows)
    assert first["rank"] == 1 and [one["key"] for one in first["neighbours"]] == ["1.png", "5.png", "2.png"]


def test_the_picture_has_the_colours_of_the_categorys_scale(
    run_dir: Path, record: Record, tmp_path: Path
) -> None:
    found = inspect_image(run_dir, KEY)
    path = write_map(run_dir, found, tmp_path)
    assert path == tmp_path / "1.png"
    picture = np.asarray(Image.open(path))
    assert picture.shape == (SIDE, SIDE, 3)
    rows = [row for row in record.images() if row.category == "bolt"]
    scale = min(row.map_min or 0.0 for row in rows), max(row.map_max or 0.0 for row in rows)
    part = EvidenceStore(run_dir).category([0])
    corners = part.evidence["map"][part.keys.index(KEY), ::2, ::2].numpy()  # not interpolated with anything
    np.testing.assert_allclose(picture[:: SIDE - 1, :: SIDE - 1], heat(corners, scale), atol=2)
    assert write_map(run_dir, found, tmp_path / "own.png") == tmp_path / "own.png"


def test_the_command_prints_and_writes(run_dir: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    verbs.register(app)
    words = [
        "inspect",
        str(run_dir),
        "--key",
        KEY,
        "--out",
        str(tmp_path),
        "--json",
        str(tmp_path / "r.json"),
    ]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer
    assert "of 6 in its category" in answer.stdout and f"{KEY}  <" in answer.stdout
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["map"]["picture"] == str(tmp_path / "1.png") and (tmp_path / "1.png").is_file()
    assert describe(content) == answer.stdout.splitlines()
    piped = CliRunner().invoke(app, [*words[:4], "--json", "-"])
    assert json.loads(piped.stdout)["key"] == KEY


def test_unknown_names_suggest(run_dir: Path) -> None:
    with pytest.raises(
        UsageError, match=r"has no image 'bolt/test/hole/l\.png'\. Did you mean 'bolt/test/hole/"
    ):
        inspect_image(run_dir, "bolt/test/hole/l.png")
    with pytest.raises(UsageError, match=r"name an image with --key, such as --key bolt/test/good/0\.png"):
        inspect_image(run_dir, "")
    with pytest.raises(UsageError, match=r"was not scored under 'referenc'\. Did you mean 'reference'"):
        inspect_image(run_dir, KEY, "referenc")
    with pytest.raises(RecordError, match=r"gone: not the folder of a run, it has no observation\.json"):
        inspect_image(run_dir / "gone", KEY)


def test_another_protocol_has_its_own_numbers(run_dir: Path) -> None:
    score_run(run_dir, "common-1", settings={})
    other = inspect_image(run_dir, KEY, "common-1")
    assert other["protocol"] == "common-1" and inspect_image(run_dir, KEY)["protocol"] == "reference"
    assert other["map"] != inspect_image(run_dir, KEY)["map"]


def test_a_failed_image_says_why(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    content = json.loads((copy / "observation.json").read_text())
    content["failed"] = [{"key": "bolt/gone.png", "reason": "broken image data"}]
    (copy / "observation.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match="this image could not be read: broken image data"):
        inspect_image(copy, "bolt/gone.png")


def test_a_run_without_a_record_says_so(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "observation.json").write_bytes((run_dir / "observation.json").read_bytes())
    with pytest.raises(RecordError, match="has no record yet"):
        inspect_image(tmp_path, KEY)


def test_foreign_maps_have_scores_but_no_evidence(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "parts", categories=("bolt",))
    for path in folder.glob("*/test/*/*.png"):
        target = tmp_path / "maps" / path.relative_to(folder).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, np.asarray(Image.open(path).convert("L"), np.float32) / 255)
    record = score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "results")
    run_dir = record.path.parents[1]
    found = inspect_image(run_dir, KEY)
    assert found["evidence"] == {} and found["of"] == 6
    with pytest.raises(RecordError, match="foreign maps leave no evidence"):
        write_map(run_dir, found, tmp_path)
