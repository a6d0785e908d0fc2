"""AA-CLIP: its image scores, smoothing and words, and that the rest of a batch does not matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from methods.aa_clip import (
    AaClip,
    AaClipObserver,
    adapt,
    blur,
    blur_matrix,
    checkpoint_shapes,
    encode_prompts,
    min_max,
)
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.towers import load_clip
from zsadbench.errors import MethodError, WeightsError
from zsadbench.inputs import Backbone
from zsadbench.method.registry import resolve, wordings

WORDS = {"bottle": "dark bottle", "screw": "screw"}
CATEGORIES = ["bottle", "screw", "bottle"]


def method(
    checkpoint: Path | None = None, variant: str = "", domain: str = "industrial", **fields: Any
) -> AaClip:
    found = cast(AaClip, resolve(f"aa-clip{variant}", domain=domain).method)
    backbone = Backbone("tiny-l14", "random", found.backbone.activation)
    return dataclasses.replace(found, backbone=backbone, checkpoint=str(checkpoint or ""), **fields)


def observer(chosen: AaClip) -> AaClipObserver:
    return chosen.prepare(tiny.clip("tiny-l14", chosen.backbone.activation), WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint per variant, named after it."""
    folder = tmp_path_factory.mktemp("aa-clip")
    for name in ("", "@quick-gelu", "@relu", "@clip-text"):
        shapes = checkpoint_shapes(method(variant=name), tiny.clip("tiny-l14", "gelu"))
        tensors = {key: tiny.draw(key, shape, shape[1] ** -0.5) for key, shape in shapes.items()}
        save_checkpoint(folder / f"{name}.safetensors", tensors, Provenance("aa-clip"))
    return folder


def prepared(folder: Path, variant: str = "", **fields: Any) -> AaClipObserver:
    return observer(method(folder / f"{variant}.safetensors", variant, **fields))


def test_image_score_is_fused_over_the_category() -> None:
    extrema = torch.tensor([[1.0, 3.0], [2.0, 5.0], [1.5, 2.0]])
    evidence = {"score": torch.tensor([0.2, 0.0, 0.4])}
    peaks = torch.tensor([0.5, 1.0, 0.25])  # of the range 1 to 5
    classes = torch.tensor([0.5, 0.0, 1.0])
    assert torch.allclose(method().image_scores(evidence, extrema), (peaks + classes) / 2)
    assert torch.allclose(method(domain="medical").image_scores(evidence, extrema), peaks)


def test_inductive_score_needs_no_other_image() -> None:
    extrema, evidence = torch.tensor([[1.0, 3.0], [2.0, 5.0]]), {"score": torch.tensor([0.2, -1.0])}
    for domain, wanted in (("industrial", [0.6, 0.0]), ("medical", [3.0, 5.0])):
        found = resolve("aa-clip", domain=domain).inductive
        assert torch.allclose(found.image_scores(evidence, extrema), torch.tensor(wanted))


def test_min_max_spares_a_maximum_of_one_and_survives_equal_values() -> None:
    values = torch.tensor([0.5, 0.75, 1.0])
    assert torch.equal(min_max(values, values.min(), values.max()), values)
    assert torch.equal(
        min_max(values - 0.25, torch.tensor(0.25), torch.tensor(0.75)), torch.tensor([0, 0.5, 1])
    )
    same = torch.full((2,), 0.3)
    assert torch.equal(min_max(same, same.min(), same.max()), torch.zeros(2))


def test_blur_is_a_gaussian_that_reflects_without_the_edge() -> None:
    grid = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    line = torch.exp(-0.5 * ((torch.arange(9) - 4) / 1.5) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    wanted = F.conv2d(F.pad(grid[:, None], (4, 4, 4, 4), mode="reflect"), kernel[None, None])[:, 0]
    assert torch.allclose(blur(grid, 9, 1.5), wanted, atol=1e-6)
    assert torch.equal(blur(grid, 9, 0.0), grid)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 37])
def test_blur_fits_grids_smaller_than_its_taps(side: int) -> None:
    matrix = blur_matrix(side, 9, 1.5)
    assert matrix.shape == (side, side)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(side, dtype=torch.float64))


def test_map_adds_half_of_each_level() -> None:
    grid = torch.zeros(1, 6, 6)
    assert torch.allclose(method().maps({"map": grid}, (84, 84)), torch.full((1, 84, 84), 2.0))
    assert torch.allclose(method().maps({"map": grid + 0.02}, (30, 30)), torch.full((1, 30, 30), 3.0))


def test_adapter_keeps_the_length_of_each_token() -> None:
    x = tiny.draw("tokens", (2, 5, 16), 3.0)
    weight = tiny.draw("weight", (16, 16), 0.25)
    assert torch.allclose(adapt(x, weight, 1.0).norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.equal(adapt(x, weight, 0.0), x)
    positive = x.abs()
    assert torch.allclose(adapt(positive, torch.eye(16), 0.1), positive, atol=1e-5)


def test_each_image_has_its_own_anchors_whatever_the_batch(folder: Path) -> None:
    found, inputs = prepared(folder), tiny.images(5, 3, 84)
    together = found.observe(tiny.batch(inputs, CATEGORIES))
    alone = [found.observe(tiny.batch(inputs[i : i + 1], CATEGORIES[i : i + 1])) for i in range(3)]
    turned = found.observe(tiny.batch(inputs.flip(0), CATEGORIES[::-1]))
    other = found.observe(tiny.batch(inputs, ["screw"] * 3))
    for key, value in together.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, torch.cat([one[key] for one in alone]), atol=1e-5)
        assert torch.allclose(value, turned[key].flip(0), atol=1e-5)
        assert torch.allclose(value[1], other[key][1], atol=1e-5)
        assert not torch.allclose(value[0], other[key][0], atol=1e-3)
    assert together["map"].shape == (3, 6, 6) and together["score"].shape == (3,)


def test_half_precision_tower_gives_close_float32_evidence(folder: Path) -> None:
    chosen = method(folder / ".safetensors")
    half = chosen.prepare(load_clip(chosen.backbone, dtype=torch.bfloat16), WORDS)
    inputs = tiny.batch(tiny.images(5, 3, 84), CATEGORIES)
    wanted = prepared(folder).observe(inputs)
    for key, value in half.observe(inputs).items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, wanted[key], atol=0.03 * float(wanted[key].abs().max()) + 0.01)


@pytest.mark.parametrize("variant", ["@quick-gelu", "@relu", "@clip-text"])
def test_variants_change_map_and_score(folder: Path, variant: str) -> None:
    inputs = tiny.batch(tiny.images(5, 3, 84), CATEGORIES)
    reference, found = prepared(folder).observe(inputs), prepared(folder, variant).observe(inputs)
    for key, value in reference.items():
        assert not torch.allclose(found[key], value, atol=1e-3 * float(value.abs().max()))


def test_parameter_names_are_the_authors() -> None:
    clip = tiny.clip("tiny-l14", "gelu")
    names = checkpoint_shapes(method(), clip)
    assert len(names) == 4 + 6 + 4 + 1
    assert names["text_adapter.3.fc.0.weight"] == (96, 128)
    assert names["image_adapter.layer_adapters.5.fc.0.weight"] == (128, 128)
    assert names["image_adapter.det_proj.fc.weight"] == (96, 128)
    assert "image_adapter.det_proj.fc.0.weight" in checkpoint_shapes(method(variant="@relu"), clip)
    assert not any(name.startswith("text") for name in checkpoint_shapes(method(variant="@clip-text"), clip))


def test_gradients_reach_every_text_parameter() -> None:
    chosen, clip = method(), tiny.clip("tiny-l14", "gelu")
    shapes = {key: value for key, value in checkpoint_shapes(chosen, clip).items() if key.startswith("text")}
    learned = {key: tiny.draw(key, value, 0.09).requires_grad_() for key, value in shapes.items()}
    features = encode_prompts(chosen, clip, learned, ["a broken screw."])
    assert all(found.any() for found in torch.autograd.grad(features.sum(), list(learned.values())))


def test_words_are_the_authors_where_they_have_some() -> None:
    def words(dataset: str, *categories: str) -> list[str]:
        found = resolve("aa-clip", dataset=dataset)
        return list(wordings(found, dict.fromkeys(categories, "")).values())

    assert words("mvtec", "zipper", "metal_nut") == [
        "a black zipper",
        "metal nut which has four notched edges",
    ]
    assert words("btad", "02") == ["vertical fabric lines in warm, dusty pink and beige tones"]
    assert words("aaclip_jsonl", "Kvasir", "pcb2") == ["colon endoscopy image", "integrated circuits board"]
    assert words("real_iad", "zipper", "end_cap") == ["zipper", "end cap"]
    assert words("visa_pytorch", "macaroni2") == words("visa", "macaroni2") == ["scattered yellow macaroni"]


def test_without_checkpoint_the_error_says_how_to_come_by_one() -> None:
    with pytest.raises(MethodError, match=r"zsad train --method aa-clip.*zsad checkpoints import"):
        observer(method())


def test_checkpoint_of_another_shape_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"1 surplus, first image_adapter.layer_adapters.5"):
        prepared(folder, image_adapters=5)


def test_adapters_trained_with_another_activation_are_refused(tmp_path: Path) -> None:
    path, clip = tmp_path / "adapters.safetensors", tiny.clip("tiny-l14", "gelu")
    tensors = {key: torch.ones(shape) for key, shape in checkpoint_shapes(method(), clip).items()}
    trained_on = {"backbone": {"name": "tiny-l14", "activation": "quick_gelu"}}
    save_checkpoint(path, tensors, Provenance("aa-clip", trained_on))
    with pytest.raises(
        WeightsError, match=r"trained with the activation quick_gelu.*--activation quick_gelu"
    ):
        observer(method(path))
    assert observer(method(path, "@quick-gelu")).method.backbone.activation == "quick_gelu"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": (6, 25)}, "not rising block numbers of an image tower of 24"),
        ({"levels": (12, 6)}, "not rising"),
        ({"levels": ()}, "not rising"),
        ({"image_adapters": 25}, "do not fit towers of 24 and 12 blocks"),
        ({"text_adapters": 13}, "do not fit towers"),
    ],
)
def test_parameters_that_do_not_fit_are_named(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        prepared(folder, **fields)


def test_unknown_category_is_refused(folder: Path) -> None:
    with pytest.raises(MethodError, match="category 'zipper' was not prepared"):
        prepared(folder).observe(tiny.batch(tiny.images(0, 1, 84), ["zipper"]))
