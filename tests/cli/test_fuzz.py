"""Careless and hostile calls of every verb: an exit code that the README knows, one line, no traceback.

Its share of the suite is about 15 s on one core.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.kit import hostile, tiny
from tests.kit.factory import make_folder
from tests.kit.terminal import call
from zsadbench.clip import Clip, downloads, load_clip
from zsadbench.demo import data as demo
from zsadbench.engine import encoder
from zsadbench.inputs import Backbone

CODES = {0, 1, 2, 3, 130}
TOWERS = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=28"]
CLIP = ["-m", "clip", *TOWERS, "--workers", "1", "-q"]
DEEPER = ("hostile/deep", "results/leaderboard.csv")
TRAINING = ["-m", "anomalyclip", "-d", "parts", *TOWERS, "--epochs", "1", "--limit", "2", "-q"]
SEED, CALLS = 1, 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, below two of ours, with data, results and files that are something else."""
    folder = tmp_path_factory.mktemp("fuzz") / "deep" / "down"
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("ZSAD_DATA", raising=False)
        patch.setattr(encoder, "load_clip", _load)
        patch.setattr(downloads, "_knock", _no_network)
        patch.setattr(demo, "NORMAL", 1)
        patch.setattr(demo, "ANOMALOUS", 1)
        make_folder(Path("parts"), categories=("bolt",), each=2)
        assert call("run", "-d", "parts", *CLIP, "--out", "results") == 0
        assert call("compare", "results") == 0
        _other_files()
        yield folder


def _load(backbone: Backbone, *options: Any) -> Clip:
    if backbone.name.startswith("tiny-") and backbone.weights == "random":
        return tiny.load(backbone)
    return load_clip(backbone, *options)


def _no_network(url: str) -> None:
    raise OSError("no network")


def _other_files() -> None:
    Path("page.html").write_text("<!DOCTYPE html><html><body>404</body></html>")
    Path("pointer.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    )
    Path("empty.json").touch()
    Path("deep.json").write_text("[" * 10_000)
    Path("noise.pt").write_bytes(bytes(range(256)) * 40)
    Path("prompts.toml").write_text('normal = ["{0.__class__}"]\nanomalous = ["{}"]\n')
    Image.new("RGB", (30, 20)).save("picture.png")
    for name, content in {"deep": "[" * 10_000, "list": "[]", "nan": '{"schema": NaN}'}.items():
        record = Path("hostile", name, "reference", "record.json")
        record.parent.mkdir(parents=True)
        record.write_text(content)


def sound_calls() -> dict[tuple[str, ...], list[str]]:
    """Return a call of every verb that works, and is quick; what is made wrong is put behind it."""
    run_dir = str(next(Path("results").rglob("observation.json")).parent)
    quick = ["--images", "2", "--pixels", "32", "--repeats", "1", "--batch-size", "1"]
    return {
        ("run",): ["-d", "parts", *CLIP, "--out", "results"],
        ("score",): [run_dir, "--workers", "1"],
        ("train",): [*TRAINING, "--workers", "1", "--out", "trained.safetensors"],
        ("reproduce",): ["clip", "-d", "mvtec", "--data", "parts", "-q"],
        ("checkpoints", "list"): ["."],
        ("checkpoints", "show"): [],
        ("checkpoints", "pull"): ["hf://user/repo/file.safetensors"],
        ("checkpoints", "import"): ["noise.pt", "-m", "anomalyclip", *TOWERS],
        ("compare",): ["results", "--no-write"],
        ("predict",): ["picture.png", *CLIP, "--words", "nut"],
        # A refused method: to write a graph takes seconds, to refuse one none.
        ("export",): ["anoclip+", *TOWERS, "--set", "size=42", "--words", "nut", "--out", "model.onnx"],
        ("calibrate",): ["--normal", "picture.png", *CLIP, "--words", "nut", "--force", "--out", "t.json"],
        ("inspect",): [run_dir, "--key", "bolt/test/hole/0.png"],
        ("export-submission",): [run_dir, "--out", "submission"],
        ("report",): ["results", "--gallery", "0", "--out", "site"],
        ("figure", "qualitative"): ["results", "--rows", "1", "--out", "figure.png"],
        ("figure", "curves"): ["results", "--kind", "image-roc", "--out", "figure.png"],
        ("figure", "bars"): ["results", "--out", "figure.png"],
        ("methods", "list"): [],
        ("methods", "show"): ["clip"],
        ("methods", "check"): ["clip"],
        ("methods", "new"): [],
        ("datasets", "list"): [],
        ("datasets", "show"): ["mvtec"],
        ("datasets", "check"): ["parts"],
        ("datasets", "export"): ["parts", "--meta-json", "meta.json", "--force"],
        ("datasets", "new"): ["parts", "--out", "parts.toml", "--force"],
        ("weights", "prefetch"): ["ViT-B-32"],
        ("weights", "verify"): ["tiny-l14"],
        ("weights", "list"): [],
        ("demo", "data"): ["--out", "parts"],
        ("demo", "train"): ["--images", "1", "--seconds", "0", "--out", "student.safetensors"],
        ("demo", "picture"): ["results", "--out", "sheet.png"],
        ("bench",): ["clip", *TOWERS, *quick],
        ("bench", "latency"): ["clip", *TOWERS, *quick[:-2]],
    }


def test_every_call_ends_with_a_known_code_and_without_traceback(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [*sorted(path.relative_to(place) for path in place.iterdir()), *map(Path, DEEPER)]
    wrong = []
    for words in hostile.calls(SEED, CALLS, sound_calls(), paths):
        code, (out, err) = call(*words), capfd.readouterr()
        if code not in CODES or "Traceback" in out + err or odd(out + err):
            wrong.append(f"{code} {json.dumps(words)[:900]}: {(out + err)[-900:]!r}")
    assert not wrong, "\n".join(wrong)


def odd(text: str) -> set[str]:
    """Return the characters of a text that a terminal would obey."""
    return {
        sign for sign in text if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp", "Cs")
    }
