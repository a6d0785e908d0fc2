from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.kit.trees import touch, triples
from zsadbench.cards import card_paths
from zsadbench.cli.datasets import app
from zsadbench.data.load import load_dataset
from zsadbench.errors import DatasetError


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSAD_DATA", raising=False)


def zsad(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def picture(path: Path, colour: int = 90, size: tuple[int, int] = (40, 40), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    for n, kind in enumerate(("Free", "Crack")):
        for i in range(2):
            picture(tmp_path / f"MT_{kind}/Imgs/{i}.jpg", 50 + 20 * n + 60 * i)
            picture(tmp_path / f"MT_{kind}/Imgs/{i}.png", 255 * n)
    return tmp_path


def test_the_list_shows_every_dataset() -> None:
    lines = zsad().output.splitlines()
    rows = {line.split()[0]: line for line in lines[1:] if line and not line.startswith("Counts")}
    assert set(rows) == set(card_paths("datasets"))
    assert " ".join(lines[0].split()) == "id title domain categories normal anomalous masks licence"
    assert " ".join(rows["mvtec"].split()) == "mvtec MVTec AD industrial 15 467 1258 yes CC BY-NC-SA 4.0"
    assert " no " in rows["headct"]


def test_the_list_is_light() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom zsadbench.cli.datasets import app\n"
        "assert CliRunner().invoke(app, []).exit_code == 0\n"
        "print([m for m in ('torch', 'pandas', 'numpy', 'cv2', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_show_has_tree_licence_and_citation() -> None:
    text = zsad("show", "visa").output
    for part in (
        "licence   CC BY 4.0",
        "download  https://github.com/amazon-science/spot-diff",
        "required, defect where the value is >0",
        "962 normal, 1200 anomalous",
        "normals   split 'train' fixes thresholds (zsad run --metric pixel_segf1)",
        "Expected below the folder itself or VisA_20220922/ or VisA/:\n  split_csv/1cls.csv",
        "@inproceedings{zou2022spot,",
    ):
        assert part in text
    assert "pcb3        printed circuit board     101        100" in text
    assert "{class}/{train|test}/{specie}/{stem}.png" in zsad("show", "mvtec").output
    assert "No citation is known." in zsad("show", "br35h").output
    assert "Categories are the folders found." in zsad("show", "real_iad").output
    assert "image metrics only" in zsad("show", "br35h").output
    assert "fixes thresholds" not in zsad("show", "br35h").output


def test_unknown_ids_get_a_suggestion() -> None:
    for verb in ("show", "check"):
        with pytest.raises(DatasetError, match="Did you mean 'mvtec'"):
            zsad(verb, "mvtek")


def test_check_warns_about_other_counts_with_exit_code_0(tiles: Path) -> None:
    result = zsad("check", "mtd", "--data", tiles)
    assert result.exit_code == 0
    assert "warning: in all: 2 normal and 2 anomalous images, the full set has 952 and 392" in result.output
    assert result.output.splitlines()[-1] == (
        f"mtd in {tiles}: 1 category, 2 normal and 2 anomalous test images, 0 errors."
    )


def test_check_reports_every_problem_at_once_with_exit_code_2(tiles: Path) -> None:
    picture(tiles / "MT_Crack/Imgs/2.jpg")  # without a mask
    touch(tiles, ["MT_Crack/Imgs/3.jpg", "MT_Crack/Imgs/3.png"])  # zero bytes
    (tiles / "MT_Free/Imgs/7.jpg").write_text("<html>not found</html>")
    cut = (tiles / "MT_Free/Imgs/0.jpg").read_bytes()[:-40]
    (tiles / "MT_Free/Imgs/8.jpg").write_bytes(cut)
    picture(tiles / "MT_Crack/Imgs/5.jpg", size=(40, 40))
    picture(tiles / "MT_Crack/Imgs/5.png", size=(20, 20))
    result = zsad("check", "mtd", "--data", tiles)
    assert result.exit_code == 2
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    named = {line.split(".jpg")[0].rpartition("MT_")[2] for line in errors}
    assert named == {"Crack/Imgs/2", "Crack/Imgs/3", "Crack/Imgs/5", "Free/Imgs/7", "Free/Imgs/8"}
    assert result.output.splitlines()[-1].endswith(f" {len(errors)} errors.")


def test_export_writes_a_meta_json_that_reads_the_same(tiles: Path) -> None:
    listed = load_dataset("mtd", tiles)
    out = tiles / "meta.json"
    result = zsad("export", "mtd", "--data", tiles, "--meta-json", out)
    assert result.output == f"Wrote {out} (4 test images).\n"
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["train"] == {}
    assert document["test"]["magnetic_tile"][0] == {
        "img_path": "MT_Crack/Imgs/0.jpg",
        "mask_path": "MT_Crack/Imgs/0.png",
        "cls_name": "magnetic_tile",
        "specie_name": "Crack",
        "anomaly": 1,
    }
    assert document["test"]["magnetic_tile"][-1]["mask_path"] == ""
    again = load_dataset("meta_json", tiles)
    assert triples(again) == triples(listed)
    assert again.digest == listed.digest
    with pytest.raises(DatasetError, match="exists; give another name, or --force"):
        zsad("export", "mtd", "--data", tiles, "--meta-json", out)
    assert zsad("export", "mtd", "--data", tiles, "--meta-json", out, "--force").exit_code == 0


def test_export_holds_the_train_part_and_says_where_it_belongs(tmp_path: Path) -> None:
    root = touch(tmp_path / "Größe 1", ["train/good/ü.png", "test/good/ß.png", "test/bad/1.png"])
    result = zsad("export", root, "--meta-json", tmp_path / "meta.json")
    assert "(1 train, 2 test images)" in result.output
    assert f"Its paths are relative to {root}: put it there before use." in result.output
    text = (tmp_path / "meta.json").read_text(encoding="utf-8")
    assert "ß.png" in text
    assert [r["img_path"] for r in json.loads(text)["train"]["Größe 1"]] == ["train/good/ü.png"]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["good/1.png", "bad/1.png"], []),
        (["healthy/1.png", "ill/1.png", "very ill/1.png"], ["--normal", "healthy"]),
        (["a_b/test/good/1.png", "a_b/test/cut/1.png", "a_b/ground_truth/cut/1_mask.png"], []),
        (["test/clean/1.png", "test/cut/1.png"], ["--normal", "clean"]),
    ],
    ids=["good and bad", "own names", "MVTec AD", "one category with own names"],
)
def test_new_writes_a_description_that_works(names: list[str], options: list[str], tmp_path: Path) -> None:
    folder = touch(tmp_path / "My parts", names)
    result = zsad("new", folder, *options)
    made = folder / "my_parts.toml"
    assert f"Wrote {made}." in result.output
    assert made.read_text().startswith("# A dataset description.")
    found = load_dataset(str(made))
    wanted = {n for n in names if "ground_truth" not in n}
    assert {s.key for s in found.samples} == wanted
    assert {s.key for s in found.samples if not s.anomalous} == {
        n for n in names if n.split("/")[-2] in ("good", "healthy", "clean")
    }
    with pytest.raises(DatasetError, match=r"my_parts.toml exists; give another name with --out, or --force"):
        zsad("new", folder, *options)


def test_new_can_write_elsewhere_and_refuses_what_it_cannot_guess(tmp_path: Path) -> None:
    folder = touch(tmp_path / "cups", ["good/1.png", "bad/1.png", "deep/x/y/1.png"])
    result = zsad("new", folder, "--out", tmp_path / "mine.toml")
    assert f"zsad datasets check {tmp_path / 'mine.toml'} --data {folder}" in result.output
    assert len(load_dataset(str(tmp_path / "mine.toml"), folder).samples) == 2
    with pytest.raises(DatasetError, match="The images have no labels"):
        zsad("new", folder / "deep")
    touch(folder, ["deep/z/1.png"])
    with pytest.raises(DatasetError, match="Which folder holds normal images"):
        zsad("new", folder / "deep")
    with pytest.raises(DatasetError, match="gone: no such folder"):
        zsad("new", tmp_path / "gone")
