"""``zsad train`` and ``zsad checkpoints`` as a user types them, up to records on another dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from methods._training_anomalyclip import PromptRecipe, prompt_ids
from methods.anomalyclip import AnomalyClip
from tests.cli.test_cli import zsad
from tests.kit import tiny
from tests.kit.factory import make_folder
from zsadbench.clip.checkpoints import Provenance, read_provenance, save_checkpoint
from zsadbench.data.load import load_dataset
from zsadbench.errors import WeightsError
from zsadbench.inputs import Backbone
from zsadbench.run.zeroshot import marks_of, seen_images
from zsadbench.training.authors import outline, read_tables

CLIP = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=42", "--workers", "1"]
FAST = ["--epochs", "2", "--batch-size", "4", "--device", "cpu", "-q"]
BACKBONE = Backbone("tiny-l14", "random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_folder(root / "parts", ("bolt",), each=3)
    make_folder(root / "goods", ("cloth",), each=3, side=44)
    return root


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AnomalyCLIP, trained on ``parts`` for two epochs."""
    from zsadbench.training.run import train

    out = tmp_path_factory.mktemp("checkpoints") / "prompts.safetensors"
    clip: dict[str, Any] = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": "42"}}
    train("anomalyclip", str(data / "parts"), out, epochs=2, batch_size=4, workers=1, quiet=True, **clip)
    return out


def observation(out: Path) -> dict[str, Any]:
    (path,) = out.rglob("observation.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_train_then_run_on_another_dataset(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts.safetensors"
    words = ["-m", "anomalyclip", "-d", str(data / "parts"), "--out", str(out), *CLIP, *FAST, "--shots", "4"]
    code, text, err = zsad(capfd, "train", *words, "--seed", "5")
    assert code == 0, err
    assert text.split() == [
        str(tmp_path / f"prompts{part}.safetensors") for part in ("-epoch01", "-epoch02", "")
    ]
    run = ["run", "-m", "anomalyclip", "-d", str(data / "goods"), "--checkpoint", str(out), "-q"]
    code, text, err = zsad(capfd, *run, "--out", str(tmp_path / "results"), *CLIP)
    assert code == 0, err
    found = observation(tmp_path / "results")
    assert found["checkpoint"]["seed"] == 5
    assert found["marks"] == []


def test_several_epochs_have_a_row_each(
    data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = ["--checkpoint", str(checkpoint.with_name("prompts-epoch01.safetensors"))]
    files += ["--checkpoint", str(checkpoint)]
    run = ["run", "-m", "anomalyclip", "-d", str(data / "goods"), "-q", "--out", str(tmp_path), *CLIP]
    code, text, err = zsad(capfd, *run, *files)
    assert code == 0, err
    epochs = [
        json.loads(path.read_text())["checkpoint"]["epoch"] for path in tmp_path.rglob("observation.json")
    ]
    assert sorted(epochs) == [1, 2]
    assert sum(line.strip().startswith("anomalyclip") for line in text.splitlines()) == 2


def test_seen_images_are_refused_unless_allowed(
    data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    renamed = tmp_path / "renamed"  # contents decide, not names
    for path in sorted((data / "parts").rglob("*.png")):
        target = renamed / path.relative_to(data / "parts").with_name(f"x{path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    run = ["run", "-m", "anomalyclip", "-d", str(renamed), "--checkpoint", str(checkpoint), "-q"]
    run += ["--out", str(tmp_path / "results"), *CLIP]
    code, _, err = zsad(capfd, *run)
    assert code == 2
    assert "was trained on 6 of the 6 images of 'renamed'" in err
    assert "--allow-seen" in err
    assert not (tmp_path / "results").exists()
    code, text, err = zsad(capfd, *run, "--allow-seen")
    assert code == 0, err
    assert observation(tmp_path / "results")["marks"] == ["seen data"]
    assert "seen data" in text


def test_one_seen_image_is_enough(data: Path, tmp_path: Path) -> None:
    parts = load_dataset(str(data / "parts"))
    hashes = parts.hashes
    key = parts.samples[2].key
    one = Provenance("anomalyclip", images=("no image", hashes[key]))
    assert seen_images(one, hashes) == {key}
    for provenance, marks in (
        (one, ["seen data"]),
        (Provenance("anomalyclip", images=("no image",)), []),
        (Provenance("anomalyclip", dataset="visa"), ["training images unknown"]),
    ):
        path = tmp_path / "any.safetensors"
        save_checkpoint(path, {"a": torch.zeros(1)}, provenance)
        assert marks_of(path, parts) == marks
    assert marks_of("", parts) == []


def test_the_newest_fitting_checkpoint_is_taken_and_named(
    data: Path,
    checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    tensors, about = load_file(checkpoint), read_provenance(checkpoint)
    goods = load_dataset(str(data / "goods")).hashes
    others = {
        "old": about,
        "fits": about,
        "other-method": Provenance("april-gan", about.parameters),
        "other-clip": Provenance("anomalyclip", {"backbone": {"name": "ViT-B-16"}}),
        "seen": Provenance("anomalyclip", about.parameters, images=tuple(goods.values())),
    }
    for age, (name, provenance) in enumerate(others.items()):
        path = folder / "deeper" / f"{name}.safetensors"
        save_checkpoint(path, tensors, provenance)
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    (folder / "broken.safetensors").write_bytes(b"nothing")
    monkeypatch.setenv("ZSAD_CHECKPOINTS", str(folder))
    run = ["run", "-m", "anomalyclip", "-d", str(data / "goods"), "-q", "--out", str(tmp_path / "r"), *CLIP]
    code, _, err = zsad(capfd, *run)
    assert code == 0, err
    assert f"anomalyclip uses {folder / 'deeper' / 'fits.safetensors'}" in err
    monkeypatch.setenv("ZSAD_CHECKPOINTS", str(tmp_path / "nowhere"))
    code, _, err = zsad(capfd, *run)
    assert code == 2
    assert "ZSAD_CHECKPOINTS=" in err


def test_a_checkpoint_of_another_method_or_width(
    data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "-d", str(data / "goods"), "--checkpoint", str(checkpoint), "-q", "--out", str(tmp_path)]
    code, _, err = zsad(capfd, *run, "-m", "april-gan", *CLIP)
    assert code == 2
    assert "no checkpoint of 'april-gan' was given" in err
    assert "is of 'anomalyclip'" in err
    code, _, err = zsad(capfd, *run, "-m", "anomalyclip", "--set", "context=10", *CLIP)
    assert code == 2
    assert "ctx_pos is 1 x 1 x 12 x 128 in the file, 1 x 1 x 10 x 128 expected" in err


def test_show(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, text, _ = zsad(capfd, "checkpoints", "show", str(checkpoint))
    assert code == 0
    lines = {line.split(maxsplit=1)[0]: line for line in text.splitlines()}
    assert lines["method"].endswith("anomalyclip")
    assert lines["epoch"].endswith("2")
    assert lines["images"].endswith("6")
    assert "lr=0.001" in lines["training"]
    assert "ctx_pos=1 x 1 x 12 x 128" in lines["tensors"]
    code, _, err = zsad(capfd, "checkpoints", "show", str(checkpoint.with_name("none.safetensors")))
    assert code == 2
    assert "no such checkpoint file" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --method METHOD --dataset DATASET --out"),
        (["-m", "anoclip", "-d", "PARTS", "--out", "OUT"], "'anoclip' needs no training"),
        (["-m", "anomalyclipp", "-d", "PARTS", "--out", "OUT"], "Did you mean 'anomalyclip'?"),
        (["-m", "anomalyclip", "-d", "PARTS", "--out", "OUT", "--set", "lr"], "not of the form"),
        (["-m", "anomalyclip", "-d", "PARTS", "--out", "OUT", "--shots", "3", *CLIP], "half of them normal"),
    ],
)
def test_wrong_commands(
    words: list[str], message: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"PARTS": str(data / "parts"), "OUT": str(tmp_path / "out.safetensors")}
    code, _, err = zsad(capfd, "train", *[places.get(word, word) for word in words])
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


# --- the authors' files ---


def prompt_file() -> dict[str, dict[str, Tensor]]:
    """Return a file as AnomalyCLIP's authors write it, for the miniature."""
    method, clip = AnomalyClip(BACKBONE), outline(BACKBONE)
    (table,) = PromptRecipe().author_tables(method, clip)
    state = {key: torch.full(shape, 0.5) for key, shape in table.shapes.items()}
    embedding = tiny.clip("tiny-l14").text.module.token_embedding
    state |= {key: embedding(ids) for key, ids in table.embedded.items()}
    return {"prompt_learner": state | {k: v.int() for k, v in prompt_ids(method, clip).items()}}


def linear_file(key: str) -> dict[str, dict[str, Tensor]]:
    state = {
        f"fc.{n}.{k}": torch.ones(s) for n in range(4) for k, s in (("weight", (96, 128)), ("bias", (96,)))
    }
    return {key: state}


def adapter_files() -> tuple[dict[str, Any], dict[str, Any]]:
    square, wide = torch.ones(128, 128), torch.ones(96, 128)
    text = {f"{n}.fc.0.weight": square for n in range(3)} | {"3.fc.0.weight": wide}
    image = {f"layer_adapters.{n}.fc.0.weight": square for n in range(6)}
    image |= {f"seg_proj.{n}.fc.weight": wide for n in range(4)} | {"det_proj.fc.weight": wide}
    adam = torch.optim.Adam([torch.nn.Parameter(square.clone())]).state_dict()
    return (
        {"epoch": 5, "text_adapter": text, "text_optimizer": adam},
        {"epoch": 15, "image_adapter": image, "image_optimizer": adam},
    )


def imported(capfd: pytest.CaptureFixture[str], method: str, *words: Any) -> tuple[int, str, str]:
    return zsad(
        capfd,
        "checkpoints",
        "import",
        *map(str, words),
        "-m",
        method,
        "--backbone",
        "tiny-l14",
        "--weights",
        "random",
    )


def test_import_of_anomalyclip(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "epoch_15.pth"
    torch.save(prompt_file(), file)
    code, text, err = imported(capfd, "anomalyclip", file, "--trained-on", "visa")
    assert code == 0, err
    assert "none of the images of 'visa' are on this machine: a run on 'visa' is refused by its name" in err
    out = Path(text.strip())
    assert out == tmp_path / "epoch_15.safetensors"
    about = read_provenance(out)
    assert (about.dataset, about.epoch, about.images) == ("visa", 15, ())
    assert about.source.startswith("epoch_15.pth (SHA-256 ")
    assert sorted(load_file(out)) == sorted(
        ["ctx_pos", "ctx_neg", *(f"compound_prompts_text.{n}" for n in range(8))]
    )
    run = ["run", "-m", "anomalyclip", "-d", str(data / "goods"), "--checkpoint", str(out), "-q"]
    code, text, err = zsad(capfd, *run, "--out", str(tmp_path / "r"), *CLIP)
    assert code == 0, err
    assert observation(tmp_path / "r")["marks"] == ["training images unknown"]


def test_import_with_the_images_at_hand(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "linear.pth", tmp_path / "mine.safetensors"
    torch.save(linear_file("linear_layers"), file)
    code, _, err = imported(
        capfd, "clip-ad+", file, "--trained-on", data / "parts", "-o", out, "--epoch", "3"
    )
    assert code == 0, err
    about = read_provenance(out)
    assert about.epoch == 3
    assert set(about.images) == set(load_dataset(str(data / "parts")).hashes.values())
    assert (about.dataset, about.unhashed) == ("parts", 0)
    assert "all 6 images of 'parts' are known by their hashes" in err
    code, _, err = imported(capfd, "clip-ad+", file, "-o", out)
    assert code == 2
    assert "exists already" in err


def test_import_with_a_part_of_the_images(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "linear.pth"
    torch.save(linear_file("linear_layers"), file)
    make_folder(tmp_path / "mvtec", ("bottle",), each=2)
    code, text, err = imported(capfd, "clip-ad+", file, "--trained-on", "mvtec", "--data", tmp_path)
    assert code == 0, err
    assert "4 of 1725 of the images of 'mvtec' are on this machine" in err
    about = read_provenance(Path(text.strip()))
    assert (len(about.images), about.unhashed) == (4, 1721)
    run = ["run", "-m", "clip-ad+", "-d", "mvtec", "--data", str(tmp_path), "--allow-missing", "-q"]
    run += ["--checkpoint", text.strip(), "--out", str(tmp_path / "r"), *CLIP]
    code, _, err = zsad(capfd, *run)
    assert code == 2 and "was trained on 4 of the 4 images of 'mvtec'" in err
    code, _, err = imported(
        capfd, "clip-ad+", file, "--trained-on", "visaa", "-o", tmp_path / "b.safetensors"
    )
    assert code == 0 and "Did you mean 'visa'?" in err


def test_import_of_aa_clip_takes_both_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "text_adapter.pth", tmp_path / "image_adapter_15.pth"]
    for file, content in zip(files, adapter_files(), strict=True):
        torch.save(content, file)
    out = tmp_path / "both.safetensors"
    code, _, err = imported(capfd, "aa-clip", *files, "-o", out)
    assert code == 0, err
    assert read_provenance(out).epoch == 15
    assert len(load_file(out)) == 15
    code, _, err = imported(capfd, "aa-clip", files[1], "-o", tmp_path / "half.safetensors")
    assert code == 2
    assert "one file must hold 'text_adapter', 0 do" in err
    code, _, err = imported(capfd, "aa-clip@clip-text", files[1], "-o", tmp_path / "half.safetensors")
    assert code == 0, err
    assert len(load_file(tmp_path / "half.safetensors")) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ctx_pos": None}, "1 missing, first ctx_pos"),
        ({"ctx_extra": torch.ones(1)}, "1 surplus, first ctx_extra"),
        ({"ctx_neg": torch.ones(1, 1, 12, 64)}, "ctx_neg is 1 x 1 x 12 x 64 in the file, 1 x 1 x 12 x 128"),
        ({"ctx_neg": torch.full((1, 1, 12, 128), torch.nan)}, "ctx_neg holds infinite or undefined numbers"),
        ({"ctx_neg": torch.ones(1, 1, 12, 128, dtype=torch.int32)}, "ctx_neg holds int32, not real numbers"),
        ({"ctx_neg": "text"}, "'prompt_learner' holds something else than tensors"),
        (
            {"tokenized_prompts_neg": torch.ones(1, 1, 77, dtype=torch.int32)},
            "not what this method's prompts",
        ),
    ],
)
def test_import_refuses_other_contents(
    change: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = prompt_file()
    state: dict[str, Any] = content["prompt_learner"] | change
    file = tmp_path / "epoch_15.pth"
    torch.save({"prompt_learner": {k: v for k, v in state.items() if v is not None}}, file)
    code, _, err = imported(capfd, "anomalyclip", file)
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_15.pth"]


def test_import_refuses_files_of_another_method(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "visa_pretrained.pth"
    torch.save(linear_file("trainable_linearlayer"), file)
    assert imported(capfd, "april-gan", file, "-o", tmp_path / "ok.safetensors")[0] == 0
    code, _, err = imported(capfd, "clip-ad+", file)
    assert code == 2
    assert "must hold 'linear_layers', 0 do (found: trainable_linearlayer)" in err
    other = tmp_path / "other.pth"
    torch.save(prompt_file(), other)
    code, _, err = imported(capfd, "april-gan", file, other)
    assert code == 2
    assert "other.pth: holds nothing that 'april-gan' learns" in err
    code, _, err = imported(capfd, "winclip", file)
    assert code == 2
    assert "'winclip' has no published checkpoints" in err


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    file, target = tmp_path / "evil.pth", tmp_path / "executed"
    torch.save({"prompt_learner": Evil(target)}, file)
    with pytest.raises(WeightsError, match=r"evil\.pth: cannot be read"):
        read_tables(file)
    assert not target.exists()


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "epoch_1.pth"
    torch.save(prompt_file(), file)
    content = file.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 9):
        file.write_bytes(content[:kept])
        with pytest.raises(WeightsError, match=r"complete \.pth file|the file is empty"):
            read_tables(file)
    torch.save([1, 2], file)
    with pytest.raises(WeightsError, match="holds a list"):
        read_tables(file)
    with pytest.raises(WeightsError, match="no such file"):
        read_tables(tmp_path / "none.pth")


# --- real images ---


@pytest.mark.parametrize("method", ["clip-ad+", "april-gan", "anomalyclip", "aa-clip"])
def test_real_images(method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not os.environ.get("ZSAD_DATA"):
        pytest.skip("the real datasets are not here: set ZSAD_DATA to their folder")
    out = tmp_path / "learned.safetensors"
    words = ["-m", method, "-d", "mtd", "--limit", "12", "--out", str(out), *CLIP]
    words += ["--epochs", "2", "--batch-size", "4", "--device", "cpu"]
    words += ["--set", "text_epochs=1", "--set", "augment=false"] if method == "aa-clip" else []
    code, _, err = zsad(capfd, "train", *words)
    assert code == 0, err
    losses = [float(line.split("loss ")[1].split()[0]) for line in err.splitlines() if "of 2: loss" in line]
    assert losses[1] < losses[0]
    run = ["run", "-m", method, "-d", "headct", "--limit", "6", "--checkpoint", str(out), "-q"]
    code, _, err = zsad(capfd, *run, "--out", str(tmp_path / "r"), *CLIP)
    assert code == 0, err
    assert observation(tmp_path / "r")["checkpoint"]["dataset"] == "mtd"


def test_a_run_takes_the_backbone_of_its_checkpoint(
    data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without --backbone the method's own would be downloaded, only to find that the shapes differ."""
    run = ["run", "-m", "anomalyclip", "-d", str(data / "goods"), "--checkpoint", str(checkpoint), "-q"]
    code, _, err = zsad(capfd, *run, "--out", str(tmp_path / "r"), "--workers", "1")
    assert code == 0, err
    assert "anomalyclip runs on tiny-l14, which its checkpoint was trained on" in err
    assert observation(tmp_path / "r")["backbone"]["name"] == "tiny-l14"


def test_list(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkpoint.parent / "torn.safetensors").write_bytes(b"torn")
    code, text, _ = zsad(capfd, "checkpoints", "list", str(checkpoint.parent))
    (checkpoint.parent / "torn.safetensors").unlink()
    assert code == 0
    assert f"{checkpoint}\n  anomalyclip, trained on parts, epoch 2, for tiny-l14\n" in text
    assert "torn.safetensors\n  cannot be used: " in text
    code, _, err = zsad(capfd, "checkpoints", "list", str(tmp_path / "none"))
    assert code == 2 and "none: no such folder" in err


def test_a_list_shows_checkpoints_first_and_few_of_other_files(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, text, err = zsad(capfd, "checkpoints", "list", str(tmp_path))
    assert (code, text) == (0, "") and f"no checkpoint in {tmp_path}; zsad train" in err
    (tmp_path / "mine.safetensors").write_bytes(checkpoint.read_bytes())
    for number in range(9):  # as the slices of a run's evidence
        (tmp_path / f"{number}.safetensors").write_bytes(b"torn")
    code, text, err = zsad(capfd, "checkpoints", "list", str(tmp_path))
    assert code == 0 and text.startswith(f"{tmp_path / 'mine.safetensors'}\n  anomalyclip, trained on parts")
    assert text.count("cannot be used") == 4 and "and 5 more files that are no checkpoints" in err
