"""Data of one's own on the command line: what is noticed is said before the first image, or stops there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.terminal import call

CLIP = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=28", "--workers", "1"]


class Said:
    """Exit code, output and error output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Zsad = Callable[..., Said]


@pytest.fixture
def zsad(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zsad:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZSAD_DATA", raising=False)

    def run(*words: object) -> Said:
        code = call(*words)
        return Said(code, *capfd.readouterr())

    return run


def picture(path: Path, seed: int, side: int = 48, defect: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 150, (side, side, 3), dtype=np.uint8)
    if defect:
        pixels[side // 4 : side // 2, side // 4 : side // 2] = (230, 20, 20)
    Image.fromarray(pixels).save(path)


def mask_of(side: int, low: int, high: int) -> Image.Image:
    mask = np.zeros((side, side), np.uint8)
    mask[low:high, low:high] = 255
    return Image.fromarray(mask)


def tree(
    root: Path, category: str = "part", count: int = 3, side: int = 48, mask: Image.Image | None = None
) -> Path:
    """Make a tree in MVTec AD's layout, with ``mask`` for every anomalous image."""
    for number in range(count):
        picture(root / category / f"test/good/{number:03}.png", number, side)
        picture(root / category / f"test/crack/{number:03}.png", 50 + number, side, defect=True)
        path = root / category / f"ground_truth/crack/{number:03}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (mask or mask_of(side, side // 4, side // 2)).save(path)
    return root


def run(zsad: Zsad, *words: object) -> Said:
    return zsad("run", "-m", "clip", *words, *CLIP)


def before_the_first_image(said: Said, words: str) -> bool:
    """Tell whether ``words`` stand above the line that the pass begins with."""
    lines = said.err.splitlines()
    begins = next(number for number, line in enumerate(lines) if line.endswith(" images"))
    return any(words in line for line in lines[:begins])


def test_images_that_no_rule_matches_are_told_before_the_run(zsad: Zsad, tmp_path: Path) -> None:
    root = tree(tmp_path / "cam")
    for number in range(3):
        picture(root / "part/test/crack/cam1" / f"{number}.png", 90 + number)
    said = run(zsad, "-d", root)
    assert said.code == 0
    assert before_the_first_image(
        said, "not used, because no rule matches: 3 images such as part/test/crack/cam1/0.png"
    )
    assert "not used, because no rule matches: 3 images" in zsad("datasets", "check", root).out


def test_inverted_masks_are_told_before_the_run_and_by_check(zsad: Zsad, tmp_path: Path) -> None:
    inverted = Image.fromarray(255 - np.asarray(mask_of(48, 12, 24)))
    root = tree(tmp_path / "M", mask=inverted)
    words = "3 of 6 images have a mask that covers more than half of the image"
    assert before_the_first_image(run(zsad, "-d", root), words)
    checked = zsad("datasets", "check", root)
    assert words in checked.out and checked.code == 0


def test_defects_that_vanish_are_told_with_size_and_remedy(zsad: Zsad, tmp_path: Path) -> None:
    root = tree(tmp_path / "M", side=400, mask=mask_of(400, 100, 101))
    said = run(zsad, "-d", root)
    assert (
        "warning: part: the defects of 3 of 6 images vanish at 28 x 28 pixels (bilinear50; first "
        "part/test/crack/000.png), so their masks count as empty; evaluate with --mask-resize native, or "
        "with a larger --size"
    ) in said.err
    assert "defects of which nothing is left at 240 pixels" in zsad("datasets", "check", root).out
    assert "vanish" not in run(zsad, "-d", root, "--mask-resize", "native").err
    empty = tree(tmp_path / "E", mask=mask_of(48, 0, 0))
    assert "vanish" not in run(zsad, "-d", empty).err


def test_a_folder_of_masks_scores_as_their_union(zsad: Zsad, tmp_path: Path) -> None:
    whole, parts = tree(tmp_path / "whole" / "L"), tree(tmp_path / "parts" / "L")
    for path in list(parts.glob("part/ground_truth/crack/*_mask.png")):
        folder = path.with_name(path.name.removesuffix("_mask.png"))
        folder.mkdir()
        values = np.asarray(Image.open(path)).copy()
        upper, lower = values.copy(), values.copy()
        upper[18:], lower[:18] = 0, 0
        Image.fromarray(upper).save(folder / "000.png")
        Image.fromarray(lower).save(folder / "001.png")
        path.unlink()
    tables = []
    for root in (whole, parts):
        assert run(zsad, "-d", root, "-o", root.parent / "out").code == 0
        (file,) = (root.parent / "out").glob("**/reference/categories.csv")
        tables.append(file.read_text())
    assert tables[0] == tables[1]


WRONG = {
    "protocol": (["--protocol", "comon-1"], "unknown protocol 'comon-1'. Did you mean 'common-1'?"),
    "size": (["--size", "0"], "--size 0: give a number from 1 to 8192"),
    "masks": (["--mask-resize", "cubic"], "unknown mask rule 'cubic'"),
    "limit": (["--aupro-limit", "30"], "--aupro-limit 30.0: give a number above 0, up to 1"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_wrong_rules_stop_before_the_first_image(
    options: list[str], words: str, zsad: Zsad, tmp_path: Path
) -> None:
    said = run(zsad, "-d", tree(tmp_path / "M"), "-o", tmp_path / "out", *options)
    assert said.code == 2 and words in said.err
    assert not list(tmp_path.glob("out/**/*.safetensors"))


def test_a_category_of_a_partial_set_runs_and_is_scored_again(zsad: Zsad, tmp_path: Path) -> None:
    root = tree(tmp_path / "mvtec", "carpet")
    said = run(zsad, "-d", "mvtec", "--data", root, "-o", tmp_path / "out")
    assert said.code == 2 and "no test sample of class grid, leather" in said.err
    said = run(zsad, "-d", "mvtec", "--data", root, "-o", tmp_path / "out", "--category", "carpet")
    assert said.code == 0
    assert before_the_first_image(
        said, "class carpet: 3 normal and 3 anomalous images, the full set has 28 and 89"
    )
    (run_dir,) = {path.parents[1] for path in (tmp_path / "out").glob("**/reference/record.json")}
    assert zsad("score", run_dir, "--protocol", "common-1").code == 0


# Training


def train(zsad: Zsad, out: Path, *words: object) -> Said:
    return zsad("train", "-m", "clip-ad+", "--epochs", "1", "-o", out, *words, *CLIP)


def test_training_without_a_defect_is_refused(zsad: Zsad, tmp_path: Path) -> None:
    empty = tree(tmp_path / "E", mask=mask_of(48, 0, 0))
    said = train(zsad, tmp_path / "e.safetensors", "-d", empty)
    assert said.code == 2
    assert "all 3 masks are empty (mask_positive = '>0'), so there is no defect to learn from" in said.err
    normal = tmp_path / "N"
    for number in range(3):
        picture(normal / f"part/test/good/{number}.png", number)
    said = train(zsad, tmp_path / "n.safetensors", "-d", normal)
    assert said.code == 2
    assert ": 3 normal images and no defect to learn from" in said.err
    assert not list(tmp_path.glob("*.safetensors"))


def test_training_on_a_partial_set_may_be_allowed(zsad: Zsad, tmp_path: Path) -> None:
    root, out = tree(tmp_path / "mvtec", "carpet"), tmp_path / "c.safetensors"
    said = train(zsad, out, "-d", "mvtec", "--data", root)
    assert said.code == 2 and "use --allow-missing" in said.err and not out.exists()
    assert train(zsad, out, "-d", "mvtec", "--data", root, "--allow-missing").code == 0
    other = tmp_path / "d.safetensors"
    assert train(zsad, other, "-d", "mvtec", "--data", root, "--category", "carpet").code == 0


# Single images


def test_predict_looks_into_folders_and_says_what_it_leaves_out(zsad: Zsad, tmp_path: Path) -> None:
    root = tree(tmp_path / "B")
    (root / "part/test/photo.heic").write_bytes(b"?")
    said = zsad("predict", root / "part/test", "-m", "clip", *CLIP, "-q")
    names = [line.split()[-1] for line in said.out.splitlines() if line.endswith(".png")]
    wanted = [f"part/test/{kind}/{number:03}.png" for kind in ("crack", "good") for number in range(3)]
    assert [Path(name).relative_to(root).as_posix() for name in names] == wanted
    assert "not read: 1 image such as photo.heic" in said.err
    said = zsad("predict", root, "-m", "clip", *CLIP, "-q")
    assert said.out.count(".png") == 6
    assert "not looked into, because they are called like masks: part/ground_truth" in said.err


def test_overlays_of_an_earlier_call_are_no_images(zsad: Zsad, tmp_path: Path) -> None:
    picture(tmp_path / "in/a/1.png", 1)
    picture(tmp_path / "in/b/1.png", 2)
    for _ in range(2):
        said = zsad("predict", "in", "-m", "clip", *CLIP, "-q", "-o", "in/overlays")
        assert said.code == 0 and said.out.count("in/a/1.png") == said.out.count("in/b/1.png") == 1
    assert "2 overlays of earlier calls are left out" in said.err
    assert len(list((tmp_path / "in/overlays").iterdir())) == 2
    said = zsad("predict", "in", "-m", "clip", *CLIP, "-q", "-o", "in/a")
    assert said.code == 2 and "the images lie there too" in said.err
