"""Bayes-PFL: draws, what its variants change, evidence, scores, its training and its authors' files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._bayes_prompts import Planar, encode_texts, flowed, tokens_of
from methods._training_bayes_pfl import FlowRecipe, class_loss, focal
from methods.bayes_pfl import BayesPfl, BayesPflObserver, at_nodes, checkpoint_shapes, mean_map, top_mean
from methods.clip_ad import layer_maps
from tests.kit import tiny
from tests.kit.factory import make_folder
from tests.training.test_training import interrupt_at, same
from zsadbench.clip.checkpoints import Provenance, load_checkpoint, save_checkpoint
from zsadbench.errors import MethodError, WeightsError
from zsadbench.method import Evidence, method_cards, resolve
from zsadbench.training import Truth, import_checkpoint, train
from zsadbench.training.run import epoch_file

BACKBONE = "tiny-l14-w192"


def learned(chosen: BayesPfl) -> dict[str, Tensor]:
    shapes = checkpoint_shapes(chosen, tiny.clip(BACKBONE, "gelu"))
    return {
        name: tiny.draw(name, shape, 0.3, 2.0 * name.startswith("temperature"))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bayes-pfl") / "learned.safetensors"
    save_checkpoint(path, learned(BayesPfl()), Provenance("bayes-pfl"))
    return path


def method(variant: str = "", checkpoint: Path | str = "", **settings: str) -> BayesPfl:
    given = {"size": "84", "checkpoint": str(checkpoint), **settings}
    return cast(
        BayesPfl, resolve(f"bayes-pfl{variant}", backbone=BACKBONE, weights="random", settings=given).method
    )


def prepared(chosen: BayesPfl, *categories: str) -> BayesPflObserver:
    names = categories or ("any",)
    return chosen.prepare(tiny.clip(BACKBONE, "gelu"), {name: name for name in names})


def observe(chosen: BayesPfl, *categories: str) -> Evidence:
    names = list(categories or ("any",) * 3)
    return prepared(chosen, *names).observe(tiny.batch(tiny.images(5, len(names), 84), names))


# --- texts and draws ---


def test_numbers_are_drawn_before_they_are_asked_for(checkpoint: Path) -> None:
    batch = tiny.batch(tiny.images(5, 3, 84), ["any"] * 3)
    for name, calls in (("", 3 * 10), ("@common-draws", 0), ("@mean-draw", 0)):
        observer = prepared(method(name, checkpoint))
        plain = observer.observe(batch)
        observer.draw_ahead(batch.keys, batch.categories)
        draw = cast(Any, observer.draw)
        assert len(draw._waiting) == calls
        again = observer.observe(batch)
        assert not draw._waiting
        assert all(torch.equal(plain[key], again[key]) for key in plain)


def test_every_variant_changes_what_its_summary_says(checkpoint: Path) -> None:
    reference = observe(method("", checkpoint))
    changed = {}
    for name in method_cards()["bayes-pfl"].variants:
        found = observe(method(f"@{name}", checkpoint))
        both = found.keys() & reference.keys()
        kept = {key for key in both if torch.equal(found[key], reference[key])}
        changed[name] = found.keys() - kept
    every = {"score", "top", "logits"}
    assert changed == {
        "mean-draw": every,
        "common-draws": every,
        "nodes": {"map"},
        "patch-softmax": {"map"},
        "stage-1": {"score"},
        "sum-score": set(),  # act on the image score
        "max-score": set(),
        "quick-gelu": set(),  # another backbone has its own activation
    }
    assert resolve("bayes-pfl@quick-gelu").method.backbone.activation == "quick_gelu"
    assert reference["logits"].shape == (3, 120, 6, 6)
    assert observe(method("@mean-draw", checkpoint))["logits"].shape == (3, 12, 6, 6)


def test_draws_hang_on_seed_key_and_number_alone(checkpoint: Path) -> None:
    observer = prepared(method("", checkpoint))
    found = observer.noise("context", ["a/1.png", "a/2.png"])
    assert found.shape == (2, 10, 128)
    assert torch.equal(observer.noise("context", ["a/2.png"])[0], found[1])
    assert not torch.equal(found[0], found[1])
    fewer = prepared(method("", checkpoint, draws="4")).noise("context", ["a/1.png"])
    assert torch.equal(fewer[0], found[0, :4])
    other = prepared(method("", checkpoint, seed="1")).noise("context", ["a/1.png"])
    assert not torch.equal(other[0], found[0])
    numbers = observer.noise("context", [f"{n}.png" for n in range(40)])
    assert abs(float(numbers.mean())) < 0.02 and abs(float(numbers.std()) - 1) < 0.02
    assert abs(float(np.corrcoef(numbers.flatten(1)[:2])[0, 1])) < 0.1


def test_a_pictures_name_plays_no_part_without_draws_of_its_own(checkpoint: Path) -> None:
    batch = tiny.batch(tiny.images(5, 1, 84), ["any"])
    renamed = dataclasses.replace(batch, keys=["other.png"])
    same_score = {}
    for name in ("", "@mean-draw", "@common-draws"):
        scores = [prepared(method(name, checkpoint)).observe(one)["score"] for one in (batch, renamed)]
        same_score[name] = torch.equal(*scores)
    assert same_score == {"": False, "@mean-draw": True, "@common-draws": True}


def test_biases_reach_every_vector_of_their_kind_and_state_biases_one_side(checkpoint: Path) -> None:
    chosen, clip, tensors = method("", checkpoint), tiny.clip(BACKBONE, "gelu"), learned(BayesPfl())
    tokens = tokens_of(["bolt"], prepared(chosen, "bolt").words)
    nothing, bias = torch.zeros(1, 1, 128), tiny.draw("bias", (128,), 1.0)
    state = torch.zeros(2, 1, 128)
    plain = encode_texts(clip, tensors, tokens, nothing, state)
    moved = {name: tensors[name] + bias for name in ("prompt_context", "prompt_state_normal")}
    by_bias = encode_texts(clip, tensors, tokens, nothing + bias, state)
    by_hand = encode_texts(
        clip, tensors | {"prompt_context": moved["prompt_context"]}, tokens, nothing, state
    )
    assert torch.allclose(by_bias, by_hand, atol=1e-5) and not torch.allclose(by_bias, plain, atol=1e-2)
    one_side = torch.stack([bias, 0 * bias])[:, None]
    by_bias = encode_texts(clip, tensors, tokens, nothing, one_side)
    by_hand = encode_texts(
        clip, tensors | {"prompt_state_normal": moved["prompt_state_normal"]}, tokens, nothing, state
    )
    assert torch.allclose(by_bias, by_hand, atol=1e-5)
    assert torch.allclose(by_bias[:, 1], plain[:, 1], atol=1e-6)
    assert not torch.allclose(by_bias[:, 0], plain[:, 0], atol=1e-2)


def test_a_planar_flow_and_its_determinant() -> None:
    generator = torch.Generator().manual_seed(0)
    u, w = (0.5 * torch.randn(1, 3, 4, generator=generator) for _ in range(2))
    flow = Planar(u, w, torch.randn(1, 3, generator=generator))
    z = torch.randn(4, generator=generator)

    def end(point: Tensor) -> Tensor:
        return flowed(point[None, None], flow)[0][0, 0]

    wanted = torch.autograd.functional.jacobian(end, z).det().abs().log()  # type: ignore[no-untyped-call]
    assert float(flowed(z[None, None], flow)[1]) == pytest.approx(float(wanted), abs=1e-4)


def test_categories_of_different_lengths_share_a_batch(checkpoint: Path) -> None:
    chosen, names = method("", checkpoint), ["bolt", "a very long name of a thing", "bolt"]
    images = tiny.images(5, 3, 84)
    together = prepared(chosen, *names).observe(tiny.batch(images, names))
    for number in (0, 1):
        batch = dataclasses.replace(tiny.batch(images[[number]], [names[number]]), keys=[f"{number}.png"])
        alone = prepared(chosen, names[number]).observe(batch)
        for name, value in alone.items():
            assert torch.allclose(together[name][[number]], value, atol=1e-4), name


# --- evidence, maps, scores ---


def test_maps_are_means_of_probabilities_that_were_enlarged_first() -> None:
    logits = 3 * torch.randn(2, 40, 5, 5, generator=torch.Generator().manual_seed(0))
    wanted = layer_maps(logits, (33, 30)).mean(dim=1)
    assert torch.allclose(mean_map(logits, (33, 30)), wanted, atol=1e-6)
    for number in range(2):  # other parts at once
        alone = mean_map(logits[[number]], (33, 30))[0]
        assert torch.allclose(alone, wanted[number], atol=1e-6)


def test_nodes_are_exact_at_the_patches_and_near_between(checkpoint: Path) -> None:
    logits = observe(method("", checkpoint))["logits"]
    at_patches = logits.sigmoid().mean(dim=1)
    errors = []
    for nodes in (1, 2, 4):
        found = at_nodes(logits, nodes)
        assert found.shape == (3, 5 * nodes + 1, 5 * nodes + 1)
        assert torch.allclose(found[:, ::nodes, ::nodes], at_patches, atol=1e-6)
        lean, exact = method("", nodes=str(nodes)), method("")
        a, b = lean.maps({"map": found}, (84, 84)), exact.maps({"logits": logits}, (84, 84))
        errors.append(float((a - b).abs().max() / b.abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3


def test_few_pixels_for_the_classes_that_the_authors_name(checkpoint: Path) -> None:
    maps = torch.arange(2 * 100.0).reshape(2, 10, 10)
    assert top_mean(maps, [2, 2000]).tolist() == [98.5, 149.5]
    observer = prepared(method("", checkpoint), "screw", "bolt")
    assert (observer.pixels("screw"), observer.pixels("bolt")) == (20, 2000)
    raw = {"size": "84", "checkpoint": str(checkpoint), "top_pixels": "7", "few_pixels": "3", "sigma": "0"}
    found = observe(method("", **raw), "screw", "bolt")
    pixels = method("", **raw).maps(found, (84, 84)).flatten(1)
    wanted = [pixels[0].topk(3).values.mean(), pixels[1].topk(7).values.mean()]
    assert found["top"].tolist() == pytest.approx([float(value) for value in wanted], rel=1e-5)


def test_image_scores() -> None:
    evidence = {"score": torch.tensor([0.2, 0.4, 0.3]), "top": torch.tensor([0.9, 0.5, 0.9])}
    extrema = torch.tensor([[0.0, 0.2], [0.0, 0.2], [0.0, 0.6]])

    def scores(variant: str = "", **settings: str) -> list[float]:
        found: list[float] = method(variant, **settings).image_scores(evidence, extrema).tolist()
        return found

    assert scores() == pytest.approx([0.5, 0.5, 0.75], abs=1e-6)
    assert scores("@max-score") == pytest.approx([0, 0.5, 0.75], abs=1e-6)
    assert scores("@sum-score") == pytest.approx([0.55, 0.45, 0.6])
    assert scores(weight="1.0") == pytest.approx([0, 1, 0.5], abs=1e-6)
    flat = {"score": torch.full((2,), 0.3), "top": torch.tensor([0.1, 0.2])}
    assert method().image_scores(flat, extrema[:2]).tolist() == pytest.approx([0, 0.5], abs=1e-6)
    inductive = cast(BayesPfl, resolve("bayes-pfl").inductive)
    assert torch.equal(inductive.image_scores(evidence, extrema), evidence["score"])


def test_what_the_card_says_of_datasets_and_variants() -> None:
    for dataset in ("headct", "brainmri", "br35h"):
        found = resolve("bayes-pfl", dataset=dataset)
        assert found.parameters["image_score"] == "probability" and not found.card.transductive
    assert resolve("bayes-pfl", dataset="brainmri").card.words == {"brain": "brain ct"}
    assert resolve("bayes-pfl", dataset="btad").card.words["01"] == "metal1"
    assert resolve("bayes-pfl").card.transductive
    assert not resolve("bayes-pfl@sum-score").card.transductive
    numbers = {
        name: resolve(f"bayes-pfl{name}").card.evidence_per_patch for name in ("", "@nodes", "@mean-draw")
    }
    assert numbers == {"": 120, "@nodes": 16, "@mean-draw": 16}
    small = resolve("bayes-pfl", backbone="demo").parameters
    assert (small["top_pixels"], small["few_pixels"]) == (69, 1)


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "24,25"}, "blocks 1 to 24"),
        ({"heads": "5"}, "5 heads do not divide"),
        ({"context": "70"}, r"vectors and words of 'any' take 78 places, the text tower has 77"),
    ],
)
def test_parameters_that_do_not_fit_are_named(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    path = tmp_path / "learned.safetensors"
    if "context" in settings:
        save_checkpoint(path, learned(BayesPfl(context=70)), Provenance("bayes-pfl"))
    with pytest.raises(MethodError, match=message):
        prepared(method("", path, **settings))


def test_an_embedding_of_another_width_is_refused_with_the_way_out(checkpoint: Path) -> None:
    with pytest.raises(MethodError, match=r"has 96 numbers, the text tower's words 128.*another --backbone"):
        method("", checkpoint).prepare(tiny.clip("tiny-l14", "gelu"), {"any": "any"})


def test_unknown_categories_are_refused(checkpoint: Path) -> None:
    with pytest.raises(MethodError, match="category 'other' was not prepared; prepared: any"):
        prepared(method("", checkpoint)).observe(tiny.batch(tiny.images(5, 1, 84), ["other"]))


# --- training ---


def test_every_group_has_a_rate_of_its_own_on_one_schedule() -> None:
    first, second = FlowRecipe().stages(method(), tiny.clip(BACKBONE, "gelu"), {"any": "any"})
    rates = {id(value): group["lr"] for group in first.optimiser.param_groups for value in group["params"]}
    of = {name: rates[id(value)] for name, value in first.parameters.items()}
    assert len(of) == len(rates) == 59
    assert {name for name, rate in of.items() if rate == 1e-2} == {"temperature_pixel", "temperature_image"}
    assert {name for name, rate in of.items() if rate == 1e-3} == {
        name for name in of if name.startswith(("prompt_", "PFL_"))
    }
    assert set(of.values()) == {1e-2, 1e-3, 1e-4}
    assert set(second.parameters) < set(first.parameters)
    assert {name.partition(".")[0] for name in second.parameters} == {
        "fuse",
        "class_mapping",
        "image_mapping",
    }
    recipe = FlowRecipe(epochs=6, class_epochs=4)
    assert [recipe.factor(step, 5) for step in (0, 1, 5)] == pytest.approx([0, 0.2, 1])
    assert recipe.factor(5 + 15, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert first.vary is not None and not first.cached
    plain = FlowRecipe(augment=False).stages(method(), tiny.clip(BACKBONE, "gelu"), {"any": "any"})
    assert all(stage.vary is None and stage.cached for stage in plain)


def test_what_a_step_draws_depends_on_seed_stage_and_step() -> None:
    clip = tiny.clip(BACKBONE, "gelu")

    def drawn(recipe: FlowRecipe, stage: Any, step: int) -> Tensor:
        return recipe.chance(dataclasses.replace(method(), stage=stage), clip, step, 3).context

    plain = drawn(FlowRecipe(), 1, 4)
    assert plain.shape == (3, 1, 128)
    assert torch.equal(plain, drawn(FlowRecipe(), 1, 4))
    others = [drawn(FlowRecipe(), 1, 5), drawn(FlowRecipe(), 2, 4), drawn(FlowRecipe(seed=1), 1, 4)]
    assert not any(torch.equal(plain, other) for other in others)
    prompts = {FlowRecipe().chance(method(), clip, step, 1).prompt for step in range(20)}
    assert prompts == {0, 1, 2}


def test_both_kinds_of_pixels_weigh_the_same_in_the_focal_loss() -> None:
    difference = torch.tensor([[[0.0, 1.0], [2.0, -1.0]]])
    masks = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    p = difference.sigmoid()
    hit = torch.where(masks > 0, p, 1 - p)
    each = -((1 - hit) ** 2) * (hit + 1e-8).log()
    assert float(focal(difference, masks)) == pytest.approx(float(each[0, 0, 0] + each[masks == 0].mean()))
    assert float(focal(difference, 0 * masks)) == pytest.approx(
        float((p**2 * -((1 - p) + 1e-8).log()).mean())
    )


def test_a_mosaic_in_a_normal_images_place_is_anomalous() -> None:
    chosen, tensors = method(), learned(BayesPfl())
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "image": torch.randn(2, 128, generator=generator),
        "patches": torch.randn(2, 4, 9, 192, generator=generator),
    }
    texts = F.normalize(torch.randn(2, 2, 1, 128, generator=generator), dim=-1)
    masks = torch.zeros(2, 42, 42)
    masks[0, 3:9, 3:9] = 1

    def loss(labels: list[int]) -> float:
        truth = Truth(masks, torch.tensor(labels), ["any"] * 2)
        return float(class_loss(chosen, tensors, texts, inputs, truth))

    assert loss([0, 0]) == loss([1, 0]) != loss([1, 1])


def run_training(folder: Path, out: Path, epochs: int = 2, **settings: str) -> Any:
    given = {"class_epochs": "2", "size": "42", "lr": "0.001", "mosaic": "0.5", **settings}
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": 4,
        "workers": 1,
        "quiet": True,
        "device": "cpu",
    }
    return train(
        "bayes-pfl", str(folder), out, settings=given, backbone=BACKBONE, weights="random", **options
    )


def test_an_interrupted_training_equals_an_unbroken_one_in_both_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "parts", ("bolt", "metal_nut"), each=2)
    monkeypatch.setattr(
        "zsadbench.training.run.load_clip", lambda backbone, device: tiny.clip(backbone.name, "gelu")
    )
    whole = run_training(folder, tmp_path / "whole.safetensors")
    assert [sorted(losses)[0] for losses in whole.losses] == ["class"] * 4
    assert "dice_0" in whole.losses[1] and whole.losses[2].keys() == {"loss", "class"}
    assert [file.name for file in whole.files] == [
        "whole-epoch01.safetensors",
        "whole-epoch02.safetensors",
        "whole.safetensors",
    ]
    assert same(whole.files[1], whole.files[2]) and not same(whole.files[0], whole.files[1])
    for step in (4, 7):  # the second epoch of each stage
        broken = tmp_path / f"broken{step}.safetensors"
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                run_training(folder, broken)
        rest = run_training(folder, broken)
        assert len(rest.losses) == (3 if step == 4 else 1)
        assert broken.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
        assert same(epoch_file(broken, 1), whole.files[0])


def test_the_losses_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "parts", ("bolt",), each=4)
    monkeypatch.setattr(
        "zsadbench.training.run.load_clip", lambda backbone, device: tiny.clip(backbone.name, "gelu")
    )
    found = run_training(folder, tmp_path / "a.safetensors", epochs=4, augment="false", mosaic="0").losses
    focal_losses = [sum(epoch[f"focal_{number}"] for number in range(4)) for epoch in found[:4]]
    assert max(focal_losses[1:]) < 0.9 * focal_losses[0]
    assert found[5]["class"] < 0.9 * found[4]["class"]


# --- the authors' files ---


def author_file(path: Path, chosen: BayesPfl) -> dict[str, Tensor]:
    """Write a file as the authors do; return what it holds under our names."""
    tensors = learned(chosen)
    (table,) = FlowRecipe().author_tables(chosen, tiny.clip(BACKBONE, "gelu"))
    idle = {name: torch.zeros(shape) for name, shape in table.shapes.items() if name not in table.repeated}
    whole = idle | tensors
    state = whole | {name: whole[other] for name, other in table.repeated.items()}
    torch.save({"MyModel": state}, path)
    return tensors


def imported(path: Path, **settings: str) -> Path:
    return import_checkpoint(
        [path], "bayes-pfl", trained_on="visa", backbone=BACKBONE, weights="random", settings=settings
    )[0]


def test_the_authors_file_becomes_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "train_visa.pth"
    wanted = author_file(path, method())
    (table,) = FlowRecipe().author_tables(method(), tiny.clip(BACKBONE, "gelu"))
    assert (len(table.shapes), len(table.repeated), len(wanted)) == (131, 54, 59)
    shapes = checkpoint_shapes(method(), tiny.clip(BACKBONE, "gelu"))
    found = load_checkpoint(imported(path), "bayes-pfl", shapes)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("saved", "name", "epoch"),
    [("train_visa", "train_visa", None), ("epoch_post_7_2", "train_visa", 7), ("x", "epoch_post_12_1", 12)],
)
def test_the_epoch_stands_before_the_stage_in_the_authors_names(
    tmp_path: Path, saved: str, name: str, epoch: int | None
) -> None:
    author_file(tmp_path / f"{saved}.pth", method())
    path = (tmp_path / f"{saved}.pth").rename(tmp_path / f"{name}.pth")
    about = import_checkpoint([path], "bayes-pfl", backbone=BACKBONE, weights="random")[1]
    assert about.epoch == epoch


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("extra.weight", torch.zeros(3), r"1 surplus, first extra\.weight"),
        ("RCA.q_proj_pre.bias", None, r"1 missing, first RCA\.q_proj_pre\.bias"),
        ("prompt_context", torch.zeros(2, 5, 128), "prompt_context is 2 x 5 x 128 in the file, 3 x 5 x 128"),
        (
            "PFL_normal.encoder.weight_mean.module.4.bias",
            torch.ones(128),
            r"must repeat state_encoder\.weight_mean\.module\.4\.bias, and differs",
        ),
        ("temperature_pixel", torch.tensor(float("inf")), "temperature_pixel"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_says_where(
    tmp_path: Path, key: str, value: Tensor | None, message: str
) -> None:
    path = tmp_path / "train_visa.pth"
    author_file(path, method())
    content = torch.load(path, weights_only=True)
    content["MyModel"].pop(key, None)
    if value is not None:
        content["MyModel"][key] = value
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        imported(path)
    assert not path.with_suffix(".safetensors").exists()
