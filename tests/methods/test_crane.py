"""Crane and Crane+: variants, undefined numbers, guidance, training, the authors' files, and a run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._prompts import checkpoint_shapes, encode_guided, encode_prompts
from methods._training_anomalyclip import UNUSED, prompt_ids
from methods._training_crane import CraneRecipe
from methods.crane import Crane, CraneObserver, CranePlus, PlusStreams, fused, pooled, similarity
from tests.cli.test_cli import zsad
from tests.kit import tiny
from tests.kit.factory import make_folder
from tests.training.test_training import interrupt_at, same
from zsadbench.clip import SECOND_MINIATURE, Provenance, load_checkpoint, read_provenance, save_checkpoint
from zsadbench.errors import MethodError, WeightsError
from zsadbench.inputs import SecondTower
from zsadbench.maps import render, smooth
from zsadbench.method import Evidence, method_cards, recipe_of, resolve
from zsadbench.run.jobs import Request
from zsadbench.run.plan import plan_run
from zsadbench.training import import_checkpoint, train

CATEGORIES = ["bottle", "screw", "bottle"]
TINY = "tiny-l14-e128"


def learned(kind: str = "crane", seed: str = "test") -> dict[str, Tensor]:
    shapes = checkpoint_shapes(Crane(), tiny.clip(TINY, "quick_gelu", "bilinear"))
    return {name: tiny.draw(name, shape, 0.5, salt=seed) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("crane")
    files = {kind: folder / f"{kind}.safetensors" for kind in ("crane", "crane+")}
    for kind, path in files.items():
        save_checkpoint(path, learned(), Provenance(kind))
    return files


def method(checkpoints: dict[str, Path], spec: str, backbone: str = TINY, **settings: str) -> Crane:
    kind = spec.partition("@")[0]
    given = {"checkpoint": str(checkpoints[kind]), **settings}
    if kind == "crane+":
        given = {"dino": SECOND_MINIATURE} | given
    return cast(Crane, resolve(spec, backbone=backbone, weights="random", settings=given).method)


def observer(chosen: Crane) -> CraneObserver:
    clip = tiny.clip(chosen.backbone.name, "quick_gelu", chosen.backbone.position)
    return chosen.prepare(clip, {"bottle": "", "screw": ""})


def observe(chosen: Crane, images: Tensor | None = None) -> Evidence:
    inputs = tiny.images(5, 3, 84) if images is None else images
    found = observer(chosen).observe(tiny.batch(inputs, CATEGORIES[: len(inputs)]))
    tiny.clip(chosen.backbone.name, "quick_gelu", chosen.backbone.position).vision.forget()
    return found


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (
            "crane",
            {
                "context": {"logit", "score"},
                "four-layers": {"logit", "score"},
                "no-pooling": {"score"},
                "vv": {"logit", "score"},
                "logit": set(),  # acts on the map
            },
        ),
        (
            "crane+",
            {
                "context": {"logit", "score"},
                "clean-values": {"logit", "score"},
                "dattn-only": {"logit", "score"},
                "no-pooling": {"score"},
                "probability": set(),
            },
        ),
    ],
)
def test_every_variant_changes_what_its_summary_says(
    checkpoints: dict[str, Path], kind: str, wanted: dict[str, set[str]]
) -> None:
    reference = observe(method(checkpoints, kind))
    changed = {}
    for name in method_cards()[kind].variants:
        found = observe(method(checkpoints, f"{kind}@{name}"))
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == wanted


def test_the_sets_are_dinos_patches_then_the_second_stream(checkpoints: dict[str, Path]) -> None:
    crane, plus = (observe(method(checkpoints, kind))["logit"] for kind in ("crane", "crane+"))
    alone = observe(method(checkpoints, "crane+@dattn-only"))["logit"]
    assert (crane.shape, plus.shape, alone.shape) == ((3, 1, 6, 6), (3, 2, 6, 6), (3, 1, 6, 6))
    assert torch.allclose(plus[:, 1:], crane, atol=1e-4) and torch.allclose(plus[:, :1], alone, atol=1e-4)
    four = observe(method(checkpoints, "crane@four-layers"))["logit"]
    assert torch.allclose(four[:, 3:], crane, atol=1e-4)
    assert not torch.allclose(four[:, 2], four[:, 3], atol=0.1)


def test_the_rule_of_a_map(checkpoints: dict[str, Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    logit, size = 4 * torch.randn(2, 2, 6, 6, generator=generator), (168, 168)
    chosen = method(checkpoints, "crane", sigma="2")
    maps = chosen.maps({"logit": logit}, size)
    assert torch.allclose(maps, render(torch.sigmoid(logit).mean(dim=1), size, sigma=4.0))
    other = dataclasses.replace(chosen, rule="logit").maps({"logit": logit}, size)
    assert torch.allclose(other, smooth(torch.sigmoid(render(logit.mean(dim=1), size)), 4.0))
    assert not torch.allclose(maps, other, atol=0.05)
    assert resolve("crane+").parameters["rule"] == "logit"
    for options in ({"domain": "medical"}, {"dataset": "dagm"}):
        assert resolve("crane+", **options).parameters["rule"] == "probability"  # type: ignore[arg-type]


def test_pooling_is_a_sum_weighted_by_probabilities() -> None:
    patches = F.normalize(torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    logit = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(2))
    wanted = torch.zeros(2, 4)
    for image in range(2):
        for place in range(5):
            weight = 1 / (1 + torch.exp(-logit[image, :, place].mean()))
            wanted[image] += weight * patches[image, :, place].mean(dim=0)
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    assert torch.allclose(pooled(patches, logit), wanted, atol=1e-6)
    feature = F.normalize(torch.ones(2, 4), dim=-1)
    assert torch.allclose(
        fused(Crane(alpha=0.3), feature, patches, logit), F.normalize(0.3 * wanted + 0.7 * feature, dim=-1)
    )
    assert fused(Crane(pooling=False), feature, patches, logit) is feature


def test_uniform_pictures_have_numbers(checkpoints: dict[str, Path]) -> None:
    """In the authors' code the weights of such a picture are undefined."""
    chosen = cast(CranePlus, method(checkpoints, "crane+"))
    streams = cast(PlusStreams, observer(chosen).streams)
    tokens = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(3))
    shifted = tokens.clone()
    shifted[1] += 100.0  # one large common vector: every pair is alike
    similar = similarity(shifted)
    mean = similar.mean(dim=(1, 2))
    assert float(mean[1]) > 1 / 1.2
    logits = chosen.dino_gamma * (similar - chosen.dino_beta * mean[:, None, None])
    weights = streams.weights(similar, mean)
    assert torch.equal(weights[1], torch.eye(9))
    assert torch.equal(weights[0], logits.masked_fill(logits < 0, -torch.inf).softmax(dim=-1)[0])
    assert torch.equal(similarity(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 3))
    for value in (-1.5, 0.0, 2.0):
        found = observe(chosen, torch.full((1, 3, 84, 84), value))
        assert all(bool(torch.isfinite(one).all()) for one in found.values())


def test_neighbours_of_a_batch_do_not_matter(checkpoints: dict[str, Path]) -> None:
    images = tiny.images(7, 2, 84)
    for spec in ("crane@context", "crane+", "crane+@context"):
        chosen = method(checkpoints, spec)
        together, alone = observe(chosen, images), observe(chosen, images[:1])
        for key, value in alone.items():
            assert torch.allclose(together[key][:1], value, atol=1e-4), (spec, key)


def test_the_image_stands_behind_the_learned_vectors(checkpoints: dict[str, Path]) -> None:
    clip, vectors = tiny.clip(TINY, "quick_gelu", "bilinear"), learned()
    images = F.normalize(torch.randn(2, 128, generator=torch.Generator().manual_seed(4)), dim=-1)
    found = encode_guided(Crane(), clip, vectors, images)
    assert found.shape == (2, 2, 128)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    # A thirteenth learned vector of the same value is the same prompt.
    longer = {**vectors}
    for name in ("ctx_pos", "ctx_neg"):
        longer[name] = torch.cat([vectors[name], images[1].view(1, 1, 1, -1)], dim=2)
    assert torch.allclose(found[1], encode_prompts(Crane(context=13), clip, longer), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("crane", {"features": "24,25"}, "must be among 24 image blocks"),
        ("crane", {"features": "5"}, "none before refined_from 6"),
        ("crane", {"deep_prompts": "12"}, "choose 0 to 11"),
        ("crane+", {"branches": ""}, "branches is empty"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    checkpoints: dict[str, Path], spec: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        observer(method(checkpoints, spec, **settings))


def test_backbones_that_do_not_fit_are_named(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(MethodError, match="width 96 among word vectors of width 128: backbone 'tiny-l14'"):
        observer(method(checkpoints, "crane@context", "tiny-l14"))
    with pytest.raises(MethodError, match="patches of 14 pixels, backbone 'tiny-b16p' of 16"):
        observer(method(checkpoints, "crane+", "tiny-b16p"))
    with pytest.raises(MethodError, match=r"--set guidance=none"):
        plain = resolve("crane", backbone="tiny-l14", weights="random").method
        CraneRecipe().stages(cast(Crane, plain), tiny.clip("tiny-l14", "quick_gelu", "bilinear"), {})


def test_a_checkpoint_of_the_other_method_is_refused(checkpoints: dict[str, Path]) -> None:
    chosen = method(checkpoints, "crane+", checkpoint=str(checkpoints["crane"]))
    with pytest.raises(WeightsError, match=r"a checkpoint of 'crane', not of 'crane\+'"):
        observer(chosen)


def test_authors_recipes() -> None:
    def of(spec: str) -> dict[str, Any]:
        return dataclasses.asdict(recipe_of(resolve(spec), "visa"))

    crane = of("crane")
    assert crane == dataclasses.asdict(CraneRecipe())
    assert (crane["epochs"], crane["batch_size"], crane["seed"], crane["betas"]) == (5, 8, 111, (0.6, 0.999))
    assert (crane["local_weight"], crane["image_weight"], crane["image_temperature"]) == (8.0, 0.2, 0.01)
    assert of("crane@four-layers") == of("crane+") == crane | {"local_weight": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "parts", ("bolt",), each=3)


def options(kind: str, **more: Any) -> dict[str, Any]:
    settings = {"size": "42", "lr": "0.0002"} | ({"dino": SECOND_MINIATURE} if kind == "crane+" else {})
    return {
        "backbone": TINY,
        "weights": "random",
        "settings": settings | more.pop("settings", {}),
        "batch_size": 3,
        "workers": 1,
        "quiet": True,
        "device": "cpu",
        **more,
    }


@pytest.mark.parametrize("kind", ["crane", "crane+"])
def test_learns_and_an_interrupted_training_equals_an_unbroken_one(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(kind, str(folder), tmp_path / "whole.safetensors", **options(kind, epochs=3))
    losses = [epoch["loss"] for epoch in whole.losses]
    assert losses[2] < losses[1] < losses[0]
    assert set(whole.losses[0]) == {"loss", "focal", "dice", "image"}
    broken = tmp_path / "broken.safetensors"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(kind, str(folder), broken, **options(kind, epochs=3))
    train(kind, str(folder), broken, **options(kind, epochs=3))
    assert same(broken, whole.files[-1])
    about = read_provenance(broken)
    assert about.method == kind and about.parameters["training"]["guidance"] == "suffix"
    if kind == "crane+":
        noise = {"name": SECOND_MINIATURE, "weights": "random:0", "sha256": f"random/{SECOND_MINIATURE}/0"}
        assert about.parameters["dino"] == noise


def test_a_backbone_of_two_widths_learns_without_guidance(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.safetensors"
    unguided = options("crane", epochs=1, settings={"guidance": "none"}) | {"backbone": "tiny-l14"}
    found = train("crane", str(folder), out, **unguided)
    assert found.losses[0]["loss"] > 0 and read_provenance(out).parameters["guidance"] == "none"


def author_state(unused: int = 0) -> dict[str, Tensor]:
    """Return what the authors save on the miniature; with ``unused`` projections it is AnomalyCLIP's."""
    clip = tiny.clip(TINY, "quick_gelu", "bilinear")
    full = cast(Any, clip._tokenizer)
    ids = prompt_ids(Crane(), type("Plain", (), {"tokenizer": staticmethod(full), "text": clip.text}))
    state = {**learned(seed="authors"), **{name: value.int() for name, value in ids.items()}}
    for side in ("pos", "neg"):
        words = clip.text.module.token_embedding(ids[f"tokenized_prompts_{side}"])
        state[f"token_prefix_{side}"], state[f"token_suffix_{side}"] = words[:, :, :1], words[:, :, 13:]
    for number in range(unused):
        state[f"compound_prompt_projections.{number}.weight"] = torch.zeros(UNUSED, 128)
        state[f"compound_prompt_projections.{number}.bias"] = torch.zeros(UNUSED)
    return state


@pytest.mark.parametrize(("kind", "saved", "now", "epoch"), [("crane+", 12, 5, 12), ("crane", 5, 5, 5)])
def test_the_authors_file_becomes_a_checkpoint_of_its_true_epoch(
    kind: str, saved: int, now: int, epoch: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / f"epoch_{saved}.pth"
    torch.save({"prompt_learner": author_state()}, first)
    file = first.rename(tmp_path / f"epoch_{now}.pth")
    out = tmp_path / "ours.safetensors"
    clip = ("--backbone", TINY, "--weights", "random")
    code, _, err = zsad(
        capfd, "checkpoints", "import", str(file), "-m", kind, "--trained-on", "mvtec", "-o", str(out), *clip
    )
    assert code == 0, err
    about = read_provenance(out)
    assert (about.method, about.epoch) == (kind, epoch)
    assert ("epoch 12: epoch_5.pth (first saved as epoch_12, SHA-256 " in err) == (saved != now)
    assert ("first saved as" in about.source) == (saved != now)
    shapes = checkpoint_shapes(Crane(), tiny.clip(TINY, "quick_gelu", "bilinear"))
    found, wanted = load_checkpoint(out, kind, shapes), learned(seed="authors")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_files_of_anomalyclip_and_of_crane_are_told_apart(tmp_path: Path) -> None:
    ours, other = tmp_path / "epoch_5.pth", tmp_path / "epoch_15.pth"
    torch.save({"prompt_learner": author_state()}, ours)
    torch.save({"prompt_learner": author_state(unused=8)}, other)
    clip: dict[str, Any] = {"backbone": TINY, "weights": "random"}
    with pytest.raises(WeightsError, match="16 surplus, first compound_prompt_projections"):
        import_checkpoint([other], "crane", out=tmp_path / "a.safetensors", **clip)
    with pytest.raises(WeightsError, match="16 missing, first compound_prompt_projections"):
        import_checkpoint([ours], "anomalyclip", out=tmp_path / "b.safetensors", **clip)
    moved = {"prompt_learner": author_state() | {"token_prefix_pos": torch.zeros(1, 1, 1, 128)}}
    torch.save(moved, ours)
    with pytest.raises(WeightsError, match="not made of the token embeddings"):
        import_checkpoint([ours], "crane", out=tmp_path / "c.safetensors", **clip)


def test_a_record_knows_the_second_tower(
    checkpoints: dict[str, Path], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other weights of DINO are another observation; what is stored is scored again by its own method."""
    out = tmp_path / "results"
    words = ["run", "-m", "crane+", "-d", str(folder), "--checkpoint", str(checkpoints["crane+"]), "-q"]
    words += [
        "--backbone",
        TINY,
        "--weights",
        "random",
        "--set",
        "size=84",
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    words += ["--set", f"dino={SECOND_MINIATURE}"]
    for seed in ("0", "1"):
        code, _, err = zsad(capfd, *words, "--set", f"dino_weights=random:{seed}")
        assert code == 0, err
    observations = [json.loads(path.read_text()) for path in sorted(out.rglob("observation.json"))]
    towers = sorted((one["second_towers"]["dino"] for one in observations), key=str)
    assert towers == [
        {
            "name": SECOND_MINIATURE,
            "weights": f"random:{seed}",
            "sha256": f"random/{SECOND_MINIATURE}/{seed}",
        }
        for seed in (0, 1)
    ]
    run_dir = next(path.parent for path in out.rglob("observation.json"))
    code, text, err = zsad(capfd, "score", str(run_dir), "--set", "rule=probability")
    assert code == 0, err + text


def test_a_tower_that_cannot_be_had_costs_one_method(
    checkpoints: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(tower: SecondTower, field: str) -> None:
        raise WeightsError(f"{tower.name}: not on this machine; pass it with --set {field}_weights=FILE")

    monkeypatch.setattr("zsadbench.clip.second.find_second", absent)
    files, words = (checkpoints["crane+"],), r"_dinov2: not on this machine; pass it with --set dino_weights"
    request = Request(
        backbone=TINY, weights="random", settings={"size": "84"}, checkpoints=files, out=tmp_path
    )
    (found,) = plan_run(["all"], [str(folder)], request)
    assert re.search(words, found.skipped["crane+"])
    assert "clip" in {job.resolved.id for job in found.jobs}
    with pytest.raises(WeightsError, match=words):
        plan_run(["crane+"], [str(folder)], request)


def test_other_backbones_scale_blocks_and_lengths() -> None:
    found = cast(Crane, resolve("crane@four-layers", backbone="ViT-B-16", weights="random").method)
    assert (found.features, found.refined_from, found.sigma) == ((3, 6, 9, 12), 3, 4.0 * 224 / 518)
    assert resolve("crane+", weights="random").parameters["dino"]["weights"] == "random"
