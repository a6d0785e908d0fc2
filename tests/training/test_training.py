"""Training: losses, data, every method's recipe on a small set, interruption and bad input."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from methods._training_aa_clip import AdapterRecipe, Augmentation, frozen_levels, moved_about
from methods._training_anomalyclip import PromptRecipe
from methods._training_clip_ad import start
from methods.aa_clip import AaClip
from tests.kit import tiny, toy
from tests.kit.factory import make_folder, save
from zsadbench.bench.train import bench_train
from zsadbench.clip.checkpoints import read_provenance
from zsadbench.data.load import load_dataset
from zsadbench.errors import DatasetError, MethodError, RecordError, UsageError
from zsadbench.files import sha256_of
from zsadbench.inputs import Preprocess
from zsadbench.method.registry import recipe_of, resolve
from zsadbench.training.data import TrainingSet, few_shot
from zsadbench.training.feeder import CacheBounds, FeatureCache
from zsadbench.training.losses import dice, focal, segmentation, two_way
from zsadbench.training.run import Trained, epoch_file, train
from zsadbench.training.stages import Stage, Truth
from zsadbench.training.variations import Mosaic

# A recipe in a user's file: the brightness from which a pixel counts as anomalous.
PLAN = """

import torch

from zsadbench.training import Stage, leaves


@dataclass(frozen=True)
class Plan:
    epochs: int = 2
    batch_size: int = 8
    seed: int = 5
    rate: float = 0.1

    def stages(self, method, clip, wordings):
        learned = leaves({"from": torch.full((1,), 9.0)}, clip.device)

        def features(batch):
            return {"images": batch.images[:, 0].mean(1)}

        def loss(inputs, truth):
            return {"loss": (inputs["images"] - learned["from"]).square().mean()}

        sgd = torch.optim.SGD(learned.values(), lr=self.rate)
        return [Stage("brightness", learned, sgd, self.epochs, self.batch_size, features, loss)]
"""

# One sentence per state keeps the text tower out of the time; recipes are the authors' but for the counts.
PROMPTS = {"normal": "{}", "anomalous": "damaged {}", "templates": "a photo of a {}."}
METHODS: dict[str, dict[str, str]] = {
    "clip-ad+": PROMPTS | {"selection": "mean"},
    "april-gan": PROMPTS | {"mosaic": "0.3"},
    "anomalyclip": {},
    "adaclip": PROMPTS | {"clusters": "2", "lr": "0.002"},
    "aa-clip": PROMPTS | {"text_epochs": "1", "text_batch_size": "4", "augment": "false", "lr": "0.002"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "parts", ("bolt",), each=4)


@pytest.fixture(autouse=True)
def _one_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the miniature once for all trainings."""
    found: dict[Any, Any] = {}

    def load(backbone: Any, device: Any) -> Any:
        return found.setdefault(backbone, tiny.load(backbone))

    monkeypatch.setattr("zsadbench.training.run.load_clip", load)


def trained(method: str, folder: Path, out: Path, **options: Any) -> Trained:
    settings = METHODS[method] | {"size": "42"} | options.pop("settings", {})
    defaults: dict[str, Any] = {"epochs": 2, "batch_size": 4, "workers": 1, "quiet": True, "device": "cpu"}
    clip = {"backbone": "tiny-l14", "weights": "random", "activation": "gelu"}
    return train(method, str(folder), out, settings=settings, **defaults | clip | options)


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Let the optimisation stop with ``error`` in step number ``step``."""
    real, taken = Stage.step, [0]

    def counted(self: Stage, *args: Any) -> dict[str, float]:
        taken[0] += 1
        if taken[0] == step:
            raise error
        return real(self, *args)

    monkeypatch.setattr(Stage, "step", counted)


# --- losses ---


def test_focal_and_dice_by_hand() -> None:
    p = torch.tensor([[[[0.75, 0.5]], [[0.25, 0.5]]]])
    mask = torch.tensor([[[0.0, 1.0]]])
    e = 1e-5
    hits = [(1 - e) * 0.75 + e * 0.25 + e, 0.5 + e]
    wanted = np.mean([-((1 - q) ** 2) * np.log(q) for q in hits])
    assert float(focal(p, mask)) == pytest.approx(wanted, rel=1e-6)
    assert float(dice(p[:, 1], mask)) == pytest.approx(1 - (2 * 0.5 + 1) / (0.75 + 1 + 1))
    parts = segmentation(p, mask)
    assert float(parts["dice_normal"]) == pytest.approx(1 - (2 * 0.75 + 1) / (1.25 + 1 + 1))
    assert float(parts["focal"]) == float(focal(p, mask))


def test_dice_is_a_mean_over_images() -> None:
    p, mask = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.ones(3, 5, 4)
    mask[1] = 0
    each = [float(dice(p[i : i + 1], mask[i : i + 1])) for i in range(3)]
    assert float(dice(p, mask)) == pytest.approx(np.mean(each), rel=1e-6)


def test_two_way_is_the_softmax() -> None:
    logits = torch.tensor([[1.0, 3.0], [0.5, -40.0]])
    assert torch.allclose(two_way(logits[:, 1] - logits[:, 0]), logits.softmax(dim=1))


def test_a_stages_rate_multiplies_that_of_every_group() -> None:
    slow, fast = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [slow]}, {"params": [fast], "lr": 0.5}]
    sgd = torch.optim.SGD(groups, lr=0.1)

    def loss(features: Any, truth: Any) -> dict[str, Tensor]:
        return {"loss": (slow + fast).sum()}

    stage = Stage("both", {"slow": slow, "fast": fast}, sgd, 1, 1, lambda batch: {}, loss)
    stage.rate = lambda steps: (0.0, 1.0, 0.5)[steps]
    found = []
    for _ in range(3):
        stage.step({}, Truth(torch.zeros(1), torch.zeros(1), []))
        found.append([float(slow.detach()), float(fast.detach())])
    assert found == pytest.approx(np.array([[1, 1], [0.9, 0.5], [0.85, 0.25]]))


# --- every method ---


@pytest.mark.parametrize("method", METHODS)
def test_learns_and_an_interrupted_training_equals_an_unbroken_one(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(method, folder, tmp_path / "whole.safetensors", epochs=3)
    stages = 2 if method == "aa-clip" else 1
    falling = [epoch["loss"] for epoch in whole.losses[stages - 1 :]]
    assert len(falling) == 3
    assert falling[2] < falling[1] < falling[0]
    assert [file.name for file in whole.files] == [
        "whole-epoch01.safetensors",
        "whole-epoch02.safetensors",
        "whole-epoch03.safetensors",
        "whole.safetensors",
    ]
    assert same(whole.files[2], whole.files[3])
    assert not same(whole.files[0], whole.files[2])

    broken = tmp_path / "broken.safetensors"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2 * stages + 2, KeyboardInterrupt())  # in the last stage's second epoch
        with pytest.raises(KeyboardInterrupt):
            trained(method, folder, broken, epochs=3)
    assert not broken.exists()
    assert same(epoch_file(broken, 1), whole.files[0])
    rest = trained(method, folder, broken, epochs=3, memory_gb=0)  # and the features from a file
    assert len(rest.losses) == 2
    assert same(broken, whole.files[-1])
    assert not broken.with_suffix(".resume").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_says_where_it_comes_from(method: str, folder: Path, tmp_path: Path) -> None:
    out = trained(method, folder, tmp_path / "a.safetensors", epochs=1, shots=2, seed=3).files[-1]
    about = read_provenance(out)
    assert (about.method, about.dataset, about.epoch, about.seed) == (method, "parts", 1, 3)
    hashes = {sha256_of(path) for path in folder.rglob("test/*/*.png")}
    assert len(about.images) == 2
    assert hashes > set(about.images)
    assert about.parameters["training"]["seed"] == 3
    assert about.parameters["backbone"]["name"] == "tiny-l14"
    assert about.parameters["backbone"]["activation"] == "gelu"
    assert about.versions["torch"] == torch.__version__.partition("+")[0]


def test_the_second_training_stage_goes_on_from_the_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("aa-clip", folder, tmp_path / "whole.safetensors", epochs=1, settings={"augment": "true"})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, KeyboardInterrupt())  # the first step of the image side
        with pytest.raises(KeyboardInterrupt):
            trained("aa-clip", folder, tmp_path / "b.safetensors", epochs=1, settings={"augment": "true"})
    assert not list(tmp_path.glob("b*.safetensors"))
    rest = trained("aa-clip", folder, tmp_path / "b.safetensors", epochs=1, settings={"augment": "true"})
    assert len(rest.losses) == 1
    assert same(whole.files[-1], rest.files[-1])


def test_authors_recipes() -> None:
    def of(spec: str, dataset: str, **options: Any) -> dict[str, Any]:
        return dataclasses.asdict(recipe_of(resolve(spec, dataset=dataset, **options), dataset))

    linear = {"epochs": 5, "batch_size": 8, "seed": 42, "lr": 1e-4, "betas": (0.9, 0.999), "shuffle": False}
    linear |= {"mosaic": 0.0}
    assert of("clip-ad+", "visa") == of("clip-ad+", "mvtec") == of("clip-ad+@mean", "") == linear
    linear |= {"epochs": 15, "seed": 111, "lr": 1e-3, "betas": (0.5, 0.999), "shuffle": True}
    assert of("april-gan", "visa") == of("april-gan@native", "") == linear
    assert of("april-gan", "mvtec") == linear | {"epochs": 3, "mosaic": 0.2}
    prompts = of("anomalyclip", "visa")
    assert prompts == dataclasses.asdict(PromptRecipe())
    assert (prompts["epochs"], prompts["betas"], prompts["local_weight"]) == (15, (0.5, 0.999), 4.0)
    assert of("anomalyclip@legacy-taps", "visa") == prompts | {"local_weight": 1.0}
    assert of("anomalyclip@legacy-taps", "mvtec", settings={"features": "12,24"})["local_weight"] == 2.0
    assert of("anomalyclip@four-layers", "mvtec") == prompts
    hybrid = of("adaclip", "mvtec")
    assert hybrid == of("adaclip", "visa") == of("adaclip@no-fusion", "")
    assert (hybrid["epochs"], hybrid["batch_size"], hybrid["lr"], hybrid["seed"]) == (5, 1, 0.01, 111)
    assert (hybrid["weight_decay"], hybrid["mosaic"], hybrid["mosaic_on"]) == (0.01, 0.2, ("mvtec",))
    adapters = of("aa-clip", "visa")
    assert adapters == dataclasses.asdict(AdapterRecipe())
    assert (adapters["epochs"], adapters["batch_size"], adapters["text_batch_size"]) == (20, 2, 16)


def test_a_users_own_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = """
    def recipe(self, dataset):
        return Plan(rate=0.5 if dataset == "parts" else 0.0)

    def prepare("""
    spec = toy.write(tmp_path, "\n    def prepare(", recipe)
    path = tmp_path / "mine.py"
    path.write_text(path.read_text() + PLAN)
    options: dict[str, Any] = {"batch_size": 4, "workers": 1, "quiet": True, "device": "cpu"}
    found = train(spec, str(folder), tmp_path / "a.safetensors", settings={"size": "42"}, **options)
    first, last = (epoch["loss"] for epoch in found.losses)
    assert last < first
    about = read_provenance(found.files[-1])
    assert about.method == "mine.Mine"
    assert about.parameters["training"] == {"epochs": 2, "batch_size": 4, "seed": 5, "rate": 0.5}
    options["settings"] = {"size": "42", "rate": "0"}
    again = train(spec, str(folder), tmp_path / "b.safetensors", **options)
    assert again.losses[0]["loss"] == pytest.approx(again.losses[1]["loss"])


def test_the_rate_falls_by_steps_not_epochs() -> None:
    method = AaClip(levels=(6, 24))
    stage = AdapterRecipe(milestones=(3, 5)).stages(method, tiny.clip("tiny-l14", "gelu"), {"a": "a"})[1]
    assert stage.rate is not None
    assert [stage.rate(steps) for steps in range(7)] == [1.0] * 3 + [0.5] * 2 + [0.25] * 2


def test_start_values() -> None:
    shapes = {"fc.0.weight": (5, 64), "fc.0.bias": (5,)}
    first = start(shapes, 1)
    assert all(float(value.abs().max()) <= 1 / 8 for value in first.values())
    assert all(torch.equal(value, start(shapes, 1)[key]) for key, value in first.items())
    assert not torch.equal(first["fc.0.weight"], start(shapes, 2)["fc.0.weight"])
    square = AdapterRecipe().start({"text_adapter.0.fc.0.weight": (3, 9), "image_adapter.x.weight": (3, 9)})
    assert all(0.3 < float(value.abs().max()) <= np.sqrt(6 / 12) for value in square.values())


def test_attention_of_the_frozen_features() -> None:
    clip, images = tiny.clip("tiny-l14", "gelu"), tiny.images(0, 2, 42)
    levels = (6, 24)
    with torch.no_grad():
        found = {kind: frozen_levels(clip, images, levels, 5, kind) for kind in ("batch", "token", "none")}
        alone = frozen_levels(clip, images[:1], levels, 5, "batch")
        x = clip.vision.embed(images)
        for block in clip.vision.blocks:
            x = block(x)
    plain = torch.nn.functional.normalize(clip.vision.project(x[:, 1:]), dim=-1)
    assert torch.allclose(found["none"][1], plain, atol=1e-5)
    assert not torch.allclose(found["token"][1], found["none"][1], atol=1e-2)
    assert not torch.allclose(alone[1], found["batch"][1][:1], atol=1e-2)  # images see each other


# --- data ---


def training_set(folder: Path, size: int = 42) -> TrainingSet:
    return TrainingSet((load_dataset(str(folder)),), Preprocess(size), "nearest")


def test_few_shots(folder: Path) -> None:
    data = load_dataset(str(folder))
    chosen = few_shot(data, 4, seed=1)
    assert chosen.counts() == {"bolt": (2, 2)}
    assert few_shot(data, 4, seed=1).digest == chosen.digest
    assert len({few_shot(data, 2, seed=n).digest for n in range(8)}) > 1
    for shots, words in ((3, "half of them normal"), (0, "half of them"), (10, "only 4 normal")):
        with pytest.raises(UsageError, match=words):
            few_shot(data, shots, seed=1)


def test_mosaics_have_four_tiles_with_their_masks(tmp_path: Path) -> None:
    for kind, grey in (("good", 40), ("hole", 200)):
        save(tmp_path / "m" / "a" / "test" / kind / "0.png", np.full((20, 20, 3), grey))
    save(tmp_path / "m" / "a" / "ground_truth" / "hole" / "0_mask.png", np.full((20, 20), 255))
    data = training_set(tmp_path / "m", 40)
    kinds = set()
    for seed in range(12):
        example = Mosaic(1.0)(data, 0, np.random.default_rng(seed))
        assert example is not None
        rows, columns = slice(4, 40, 20), slice(4, 40, 20)  # well inside each tile
        bright, defect = example.image[0, rows, columns] > 0, example.mask[rows, columns]
        assert torch.equal(bright, defect)
        kinds.add(int(defect.sum()))
    assert len(kinds) > 2
    assert Mosaic(0.0)(data, 0, np.random.default_rng(0)) is None


def test_augmentation_moves_image_and_mask_together(folder: Path) -> None:
    inputs = torch.zeros(4, 42, 42)
    inputs[:, 5:15, 20:30] = 1
    moved = [moved_about(inputs, np.random.default_rng(seed)) for seed in range(20)]
    assert all(torch.equal(one[0], one[3]) for one in moved)
    assert all(set(one.flatten().tolist()) <= {0.0, 1.0} for one in moved)
    assert sum(torch.equal(one, inputs) for one in moved) < 8
    data, rng = training_set(folder), np.random.default_rng
    one, again = (Augmentation(jitter=True)(data, 5, rng(7)) for _ in range(2))
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.mask, again.mask)
    assert one.image.shape == (3, 42, 42)


def test_features_are_kept_in_memory_in_a_file_or_nowhere(tmp_path: Path) -> None:
    bounds = CacheBounds(memory=100, disk=1000, folder=tmp_path)
    assert [bounds.place(size) for size in (100, 101, 1000, 1001)] == ["memory", "disk", "disk", "nowhere"]
    rows = {"tokens": torch.arange(12.0).view(2, 2, 3), "mask": torch.ones(2, 2, dtype=torch.bool)}
    for folder in (None, tmp_path):
        cache = FeatureCache(3, rows, folder)
        cache.write(1, rows)
        found = cache.rows([2, 1], torch.device("cpu"))
        assert torch.equal(found["tokens"], rows["tokens"].flip(0))
        assert found["mask"].dtype == torch.bool
    assert not list(tmp_path.iterdir())  # the file has no name any more


def test_a_full_disk_only_costs_the_kept_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = trained("anomalyclip", folder, tmp_path / "a.safetensors", epochs=1)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zsadbench.training.feeder.os.posix_fallocate", full)
    out = tmp_path / "b.safetensors"
    again = trained("anomalyclip", folder, out, epochs=1, memory_gb=0, quiet=False)
    assert "computed again in every epoch" in capsys.readouterr().err
    assert again.losses[0]["loss"] == pytest.approx(kept.losses[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["clip-ad+", "april-gan", "anomalyclip"])
def test_the_tower_sees_each_image_once(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real: Callable[..., Tensor] = tiny.clip("tiny-l14", "gelu").vision.embed

    def counted(self: Any, images: Tensor) -> Tensor:
        seen.append(len(images))
        return real.__func__(self, images)  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr("zsadbench.clip.towers.Vision.embed", counted)
    mosaic = {"mosaic": "0"} if method == "april-gan" else {}
    trained(method, folder, tmp_path / "a.safetensors", epochs=3, settings=mosaic)
    assert sum(seen) == 8


# --- what can go wrong ---


def test_without_masks(tmp_path: Path, folder: Path) -> None:
    for kind in ("good", "hole"):
        save(tmp_path / "bare" / "a" / "test" / kind / "0.png", np.zeros((20, 20, 3)))
    with pytest.raises(DatasetError, match="mask"):
        trained("anomalyclip", tmp_path / "bare", tmp_path / "a.safetensors")


def test_out_of_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(MethodError, match=r"out of memory on cpu with a batch of 4 .*smaller batch"):
        trained("anomalyclip", folder, tmp_path / "a.safetensors")
    assert read_provenance(tmp_path / "a-epoch01.safetensors").epoch == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 1, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trained("anomalyclip", folder, tmp_path / "a.safetensors")


def test_a_full_disk_in_mid_epoch_leaves_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("anomalyclip", folder, tmp_path / "whole.safetensors", epochs=3)
    real, writes = os.fsync, [0]

    def full(handle: int) -> None:
        writes[0] += 1
        if writes[0] > 4:  # checkpoint, folder, state, folder
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    out = tmp_path / "b.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("zsadbench.files.os.fsync", full)
        with pytest.raises(RecordError, match="the disk is full"):
            trained("anomalyclip", folder, out, epochs=3)
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["b-epoch01.safetensors", "b.resume"]
    assert same(epoch_file(out, 1), whole.files[0])
    trained("anomalyclip", folder, out, epochs=3)
    assert same(out, whole.files[-1])


def test_the_state_of_another_training_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            trained("anomalyclip", folder, out)
    for other in ({"seed": 7}, {"settings": {"lr": "0.5"}}, {"batch_size": 2}, {"limit": 4}):
        with pytest.raises(UsageError, match="an interrupted training with other data"):
            trained("anomalyclip", folder, out, **other)
    state = out.with_suffix(".resume")
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(UsageError, match="is damaged"):
        trained("anomalyclip", folder, out)
    state.unlink()
    trained("anomalyclip", folder, out)
    with pytest.raises(UsageError, match="exists already"):
        trained("anomalyclip", folder, out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs=0: must be a whole number from 1 to 4096"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number from 1 to 4096"),
        ({"settings": {"lr": "fast"}}, "lr=fast: must be a number"),
        ({"settings": {"lr": "-1"}}, "lr=-1: must be a number above 0"),
        ({"settings": {"betas": "2,2"}}, "Invalid beta parameter"),
        ({"settings": {"rate": "1"}}, "no such parameter"),
        ({"epoch": 3}, "no option 'epoch'. Did you mean 'epochs'"),
        ({"shots": 100}, "has only 4 normal"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        trained("anomalyclip", folder, tmp_path / "a.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_trained_or_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'clip' needs no training"):
        train("clip", str(folder), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"a checkpoint is a \.safetensors file"):
        train("anomalyclip", str(folder), tmp_path / "a.pth")
    with pytest.raises(MethodError, match="whole square images"):
        trained("anomalyclip", folder, tmp_path / "a.safetensors", settings={"resize": "shortest"})


def test_a_loss_that_is_no_number(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "zsadbench.methods._training_anomalyclip.total", lambda parts: parts["focal"] * np.inf
    )
    with pytest.raises(MethodError, match=r"the loss is inf in epoch 1; lower the learning rate"):
        trained("anomalyclip", folder, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_image_that_breaks_in_mid_training_is_named(folder: Path, tmp_path: Path) -> None:
    broken = make_folder(tmp_path / "parts", ("bolt",), each=2)
    victim = broken / "bolt" / "test" / "good" / "1.png"
    image = Image.open(victim)
    image.load()
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"good/1\.png"):
        trained("anomalyclip", broken, tmp_path / "a.safetensors")


def test_progress_tells_loss_and_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zsadbench.training.loop.PLAIN_EVERY_SECONDS", -1.0)  # within the epoch too
    trained("anomalyclip", folder, tmp_path / "a.safetensors", quiet=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if "epoch 1 of 2: loss " in line]
    assert len(lines) == 3  # two batches and their mean
    assert all(line.endswith(" s left") for line in lines)
    assert "focal" in lines[2]


def test_bench_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsadbench.bench.train.load_clip", lambda b, device: tiny.clip(b.name, b.activation))
    settings = PROMPTS | {"selection": "mean", "size": "84"}
    options: dict[str, Any] = {
        "images": 8,
        "pixels": 100,
        "repeats": 2,
        "device": "cpu",
        "settings": settings,
    }
    (row,) = bench_train("clip-ad+", backbone="tiny-l14", batch_size=4, **options)
    assert (row["batch"], row["cached"]) == (4, "yes")
    assert row["second_epoch_speedup"] > 1.5  # about 7 on a quiet machine
    assert row["ratio"] == pytest.approx(row["bare_images_per_s"] / row["images_per_s"], rel=0.6)
    with pytest.raises(UsageError, match="at least 2 images"):
        bench_train("clip-ad+", images=1)
    with pytest.raises(UsageError, match="needs no training"):
        bench_train("clip", images=2, pixels=32)
