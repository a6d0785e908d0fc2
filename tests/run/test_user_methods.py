"""Methods in users' files: what they raise is told with file and line, and results never say what runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zsadbench
from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from tests.kit.terminal import call
from zsadbench.engine import encoder
from zsadbench.errors import MethodError, RecordError, UsageError
from zsadbench.records.files import sealed
from zsadbench.records.records import Record, read_record, record_digest
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring.code import UserMethods, restore
from zsadbench.scoring.observation import score_run

KEY = "bolt/test/hole/1.png"
ANY = "a tensor of float32"


def run(spec: str, data: Path, out: Path) -> Record:
    request = Request(settings={"size": "42"}, out=out, quiet=True, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_clip", tiny.load)
        (record,) = execute((spec,), [str(data)], request).records
    return record


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "parts", ("bolt",))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.py and the results of a run with it."""
    folder = tmp_path_factory.mktemp("finished")
    run(toy.write(folder), data, folder / "results")
    return folder


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it where the file that the record names would tell if it were run."""
    folder = tmp_path / "own"
    shutil.copytree(finished, folder)
    named = finished / "mine.py"
    before = named.read_text()
    named.write_text(f"open({str(folder / 'executed')!r}, 'w').close()\n{before}")
    yield folder
    named.write_text(before)


def run_dir(folder: Path) -> Path:
    (path,) = (folder / "results").rglob("observation.json")
    return path.parent


def change(folder: Path, **method: Any) -> None:
    """Change what observation and record say of the method, sealed as by whoever wrote them."""
    path = run_dir(folder) / "observation.json"
    observation = json.loads(path.read_text())
    observation["method"] = {
        key: value for key, value in (observation["method"] | method).items() if value is not None
    }
    observation.pop("seal")
    path.write_text(json.dumps(sealed(observation)))
    path = run_dir(folder) / "reference" / "record.json"
    content = json.loads(path.read_text()) | {"observation": observation}
    content.pop("seal")
    content["record"] = record_digest(content)
    path.write_text(json.dumps(sealed(content)))


def test_a_record_keeps_the_digest_of_the_code(finished: Path) -> None:
    said = json.loads((run_dir(finished) / "observation.json").read_text())["method"]
    assert said["source_sha256"] == hashlib.sha256((finished / "mine.py").read_bytes()).hexdigest()


def test_no_verb_runs_what_results_name(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = run_dir(own)
    assert call("score", where) == 2
    assert "--method FILE.py:Mine" in capsys.readouterr().err
    assert call("report", own / "results", "--out", own / "report") == 0
    said = capsys.readouterr()
    assert "--method FILE.py:Mine" in said.err
    assert "mine.Mine" in (own / "report" / "index.html").read_text()
    assert call("inspect", where, "--key", KEY) == 0
    assert "score     " in capsys.readouterr().out
    assert call("inspect", where, "--key", KEY, "--out", own / "map.png") == 2
    said = capsys.readouterr()
    assert "score     " in said.out and "--method FILE.py:Mine" in said.err
    assert call("figure", "bars", own / "results", "--out", own / "bars.png") == 0
    assert call("figure", "qualitative", own / "results", "--out", own / "maps.png") == 2
    assert "--method FILE.py:Mine" in capsys.readouterr().err
    assert call("figure", "curves", own / "results", "--out", own / "curves.png", "--kind", "image-roc") == 0
    assert call("compare", own / "results", "--intervals") == 0
    assert not (own / "executed").exists()


@pytest.mark.parametrize("spec", ["os:system", "evil.py:Mine", "./evil.py:Mine", "evil.py"])
def test_a_record_that_names_other_code_runs_none(
    spec: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    Path("evil.py").write_text("open('executed', 'w').close()")
    change(own, spec=spec)
    with pytest.raises(RecordError, match="is a user's method, and code is not taken from a folder"):
        score_run(run_dir(own), "reference", settings={})
    assert not Path("executed").exists()


def test_the_file_named_again_renders_the_same_maps(
    own: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, spec = run_dir(own), f"{own / 'mine.py'}:Mine"
    before = read_record(where / "reference" / "record.json")
    frame = zsadbench.score(where, method=spec)
    assert frame["pixel_auroc"].tolist() == [before.value("bolt", "pixel_auroc")]
    assert "changed code" not in read_record(where / "reference" / "record.json").marks
    assert call("inspect", where, "--key", KEY, "--out", own / "map.png", "--method", spec) == 0
    assert call("report", own / "results", "--out", own / "report", "--method", spec) == 0
    assert "not shown" not in capsys.readouterr().err
    figure = ("figure", "qualitative", own / "results", "--out", own / "maps.png", "--rows", 1, "-m", spec)
    assert call(*figure) == 0 and (own / "maps.png").stat().st_size > 1000
    assert not (own / "executed").exists()


def test_changed_code_is_refused_or_marked(own: Path) -> None:
    where = run_dir(own)
    spec = toy.write(own, "size[0] / self.preprocess.size", "size[0] / 21")
    with pytest.raises(RecordError, match=r"is not the code it was observed with .*--allow-changed"):
        score_run(where, "reference", settings={}, users=UserMethods((spec,)))
    record = score_run(where, "reference", settings={}, users=UserMethods((spec,), allow_changed=True))
    assert "changed code" in record.marks
    assert "changed code" in read_record(record.path).marks


def test_records_of_0_1_know_no_digest(own: Path) -> None:
    change(own, source_sha256=None)
    users = UserMethods((f"{own / 'mine.py'}:Mine",))
    with pytest.raises(RecordError, match=r"zsadbench 0\.1 kept no digest of it.*--allow-changed"):
        score_run(run_dir(own), "reference", settings={}, users=users)
    allowed = UserMethods(users.specs, allow_changed=True)
    assert "changed code" not in score_run(run_dir(own), "reference", settings={}, users=allowed).marks


def test_only_users_methods_need_leave() -> None:
    with pytest.raises(UsageError, match=r"name a user's method here, as FILE\.py:CLASS"):
        UserMethods(("clip",))
    observation = {
        "method": {"id": "clip", "variant": "reference", "version": 1, "parameters": {}},
        "dataset": {"id": "mtd", "domain": "industrial"},
    }
    assert restore(observation, UserMethods()).id == "clip"


PREPARE = "        return Eyes(self, tuple(wordings))"
MAPS = '        return render(evidence["map"], size'
SCORES = '        return evidence["score"]'
SEEN = '        return {"map": grid, "score": grid.flatten(1).amax(1)}'
MISDEEDS = {
    "raises while it is imported": ("from dataclasses import dataclass", "1 / 0", 2, "ZeroDivisionError"),
    "exits while it is imported": ("from dataclasses import dataclass", "exit(3)", 2, "SystemExit: 3"),
    "raises in prepare": (PREPARE, "        {}[3]", 33, "prepare() failed (KeyError: 3)"),
    "exits in prepare": (PREPARE, "        exit()", 33, "prepare() failed (SystemExit: None)"),
    "prepares nothing": (PREPARE, "        pass", 32, "prepare() returns NoneType, which has no observe"),
    "raises in observe": (SEEN, "        [][1]", 52, "observe() failed (IndexError: list index out"),
    "observes nothing": (SEEN, "        pass", 46, "observe() returns NoneType, not a dict"),
    "observes a list": (SEEN, "        return [grid]", 46, "observe() returns list, not a dict"),
    "observes arrays": (SEEN, "        return {'map': grid.numpy()}", 46, "evidence 'map' is ndarray, not a"),
    "names by number": (SEEN, "        return {3: grid}", 46, "evidence 3 is torch.float32, not a tensor"),
    "observes complex": (SEEN, "        return {'map': grid + 1j}", 46, "evidence 'map' is torch.complex64"),
    "loses a row": (SEEN, "        return {'map': grid[1:]}", 46, "evidence 'map' has shape (5, 3, 3) for"),
    "keeps no rows": (SEEN, "        return {'map': grid.sum()}", 46, "evidence 'map' has shape () for 6"),
    "is undefined": (SEEN, "        return {'map': grid * float('nan')}", 46, "is not finite"),
    "raises in maps": (
        MAPS,
        "        return render(evidence['mop'], size",
        36,
        "(KeyError: 'mop",
    ),
    "renders a list": (MAPS, "        return [0] or render(0, size", 35, "maps() returns list, not " + ANY),
    "renders too few": (
        MAPS,
        "        return evidence['map'] or render(0, size",
        36,
        "(Runtime",
    ),
    "renders its own size": (
        MAPS,
        "        return evidence['map'] if 1 else render(0, size",
        35,
        "it must be",
    ),
    "renders whole numbers": (
        MAPS,
        "        return evidence['map'].int()\n        render(0, size",
        35,
        "maps() returns torch.int32, not " + ANY,
    ),
    "renders nothing defined": (
        MAPS,
        "        return float('nan') * render(evidence['map'], size",
        35,
        "finite",
    ),
    "scores nothing defined": (SCORES, "        return evidence['score'] / 0 * 0", 38, "finite"),
    "raises in scores": (
        SCORES,
        "        raise ValueError('no')",
        39,
        "failed (ValueError: no",
    ),
    "scores in a list": (SCORES, "        return evidence['score'].tolist()", 38, "returns list, not " + ANY),
    "scores one": (SCORES, "        return evidence['score'][:1]", 38, "shape (1,); it must be (6,)"),
    "scores by rows": (SCORES, "        return evidence['score'][:, None]", 38, "shape (6, 1); it must be"),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_misbehaving_method_is_named_with_its_line(misdeed: str, data: Path, tmp_path: Path) -> None:
    old, new, line, words = MISDEEDS[misdeed]
    with pytest.raises(MethodError) as raised:
        run(toy.write(tmp_path, old, new), data, tmp_path / "results")
    assert words in str(raised.value)
    assert f"{tmp_path / 'mine.py'}:{line}" in str(raised.value)


def test_evidence_of_one_shape(data: Path, tmp_path: Path) -> None:
    seen = "grid = self.method.gain * F.avg_pool2d(images[:, 0].mean(1, keepdim=True), 14)[:, 0].float()"
    other = f"{seen}\n        self.seen += 1\n        grid = grid[:, : self.seen]"
    spec = toy.write(tmp_path, seen, other)
    request = Request(settings={"size": "42"}, out=tmp_path / "results", quiet=True, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_clip", tiny.load)
        with pytest.raises(MethodError, match=r"observe\(\) returns .* for some images and .* for others"):
            execute((spec,), [str(data)], request)


def test_a_fault_of_the_toolkit_is_not_blamed_on_the_user(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("zsadbench.methods.clip.PlainClip.prepare", broken)
    request = Request(
        backbone="tiny-l14", weights="random", settings={"size": "42"}, out=tmp_path / "results", quiet=True
    )
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    with pytest.raises(KeyError, match="ours"):
        execute(("clip",), [str(data)], request)
