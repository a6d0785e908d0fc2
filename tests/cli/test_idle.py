"""What would be ignored is refused or told, and what stands in place of a file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import toy
from tests.kit.factory import make_folder
from tests.kit.terminal import call

TOWERS = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=28", "--workers", "1", "-q"]
WORDLESS = ("    backbone: Backbone", '    wording: ClassVar[str] = "none"\n    backbone: Backbone')


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path / "parts", categories=("bolt",), each=2)


def test_a_checkpoint_that_no_method_takes_is_refused(parts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("run", "-m", "clip", "-d", parts, *TOWERS, "--checkpoint", "a.safetensors") == 2
    assert "error: --checkpoint a.safetensors: clip takes none; leave it out" in capfd.readouterr().err


def test_words_that_no_prompt_holds_are_refused_or_told(
    parts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = toy.write(parts.parent, *WORDLESS)
    words = ["-d", parts, *TOWERS, "--words", "bolt=steel bolt"]
    assert call("run", "-m", spec, *words) == 2
    assert "--words bolt=...: the prompts of mine.Mine name no category" in capfd.readouterr().err
    assert call("run", "-m", spec, "-m", "clip", *words) == 0
    assert "mine.Mine: --words changes nothing" in capfd.readouterr().err
    assert call("run", "-m", "clip", *words) == 0
    assert "changes nothing" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["score", ".", "--name", "x"], "--name"),
        (["score", ".", "--scores", "x.csv"], "--scores"),
        (["score", ".", "-d", "x"], "--dataset"),
        (["score", "--maps", ".", "-d", "parts", "--set", "sigma=1"], "--set"),
    ],
)
def test_options_of_the_other_kind_of_score_are_refused(
    words: list[str], option: str, parts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    assert f"error: {option} has a meaning with" in capfd.readouterr().err


STAND_INS = {
    "a page of HTML": "<!DOCTYPE html>\n<html><body>404</body></html>\n",
    "a Git LFS pointer": f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n",
}
CALLS = {
    "image": ["predict", "file.png", "-m", "clip", *TOWERS],
    "weights": ["run", "-m", "clip", "-d", "parts", *TOWERS, "--weights", "file.safetensors"],
    "prompts": ["run", "-m", "clip", "-d", "parts", *TOWERS, "--prompts", "file.toml"],
    "description": ["datasets", "check", "file.toml"],
    "threshold": ["predict", "picture.png", "--threshold", "file.json"],
    "record": ["compare", "record.json"],
    "scores": ["score", "--maps", "maps", "-d", "parts", "--scores", "file.csv"],
    "map": ["score", "--maps", "other", "-d", "parts"],
}


@pytest.mark.parametrize("kind", STAND_INS)
@pytest.mark.parametrize("use", CALLS)
def test_a_page_or_a_pointer_in_place_of_a_file_is_called_that(
    use: str, kind: str, parts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("maps", "other"):
        for sample in parts.rglob("test/**/*.png"):
            target = Path(folder, sample.relative_to(parts)).with_suffix(".npy")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(STAND_INS[kind])
    names = ("file.png", "file.safetensors", "file.toml", "file.json", "record.json", "file.csv")
    for name in names:
        Path(name).write_text(STAND_INS[kind])
    Path("picture.png").write_bytes(next(parts.rglob("test/good/*.png")).read_bytes())
    assert call(*CALLS[use]) in (2, 3)
    told = capfd.readouterr()
    assert f"this is {kind}" in told.err and "Traceback" not in told.err
