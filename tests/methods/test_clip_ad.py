"""CLIP-AD and APRIL-GAN: text selection, taps, scores, maps at any size, and the linear layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KernelDensity
from torch import Tensor

from methods._shared import anomaly_probability
from methods.april_gan import AprilGan, AprilGanObserver
from methods.clip_ad import (
    ClipAd,
    ClipAdObserver,
    ClipAdPlus,
    check_stages,
    checkpoint_shapes,
    kde,
    minmax,
    pca,
)
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.towers import load_clip
from zsadbench.errors import MethodError, WeightsError
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.maps import exact_maps
from zsadbench.method.registry import resolve, wordings

CLIP = tiny.clip("tiny-l14")
WORDS = {"bottle": "bottle", "nut": "metal nut"}
NAMES = ["bottle", "nut", "bottle"]
BATCH = tiny.batch(tiny.images(3, 3, 84), NAMES)
COMMON: dict[str, Any] = {
    "backbone": Backbone("tiny-l14", "random"),
    "preprocess": Preprocess(84, rgb="after"),
    "templates": ("a photo of the {}.", "a photo of a {}."),
    "features": (6, 12, 18, 24),
}
FIELDS: dict[str, Any] = {**COMMON, "selection": "mean", "sigma": 3.0}


def sdp(**fields: Any) -> ClipAdObserver:
    return ClipAd(**{**FIELDS, **fields}).prepare(CLIP, WORDS)


def checkpoint(folder: Path, method: str, *, scale: float = 1.0, width: int = 128) -> str:
    """Write linear layers of noise; ``scale`` 0 leaves the biases alone."""
    path = folder / f"{method}.safetensors"
    shapes = {
        k: (s[0], width) if len(s) == 2 else s for k, s in checkpoint_shapes(ClipAd(**FIELDS), CLIP).items()
    }
    tensors = {
        key: tiny.draw(key, shape, 0.05 if len(shape) == 1 else 0.09 * scale) for key, shape in shapes.items()
    }
    save_checkpoint(path, tensors, Provenance(method))
    return str(path)


def plus(folder: Path, **fields: Any) -> ClipAdObserver:
    file = checkpoint(folder, "clip-ad+", scale=fields.pop("scale", 1.0))
    return ClipAdPlus(**{**FIELDS, **fields}, checkpoint=file).prepare(CLIP, WORDS)


def april(folder: Path) -> AprilGanObserver:
    return AprilGan(**COMMON, checkpoint=checkpoint(folder, "april-gan")).prepare(CLIP, WORDS)


def part(numbers: list[int]) -> Batch:
    return tiny.batch(BATCH.images[numbers, 0], [NAMES[number] for number in numbers])


# --- text selection


def unit(rows: list[list[float]]) -> Tensor:
    return F.normalize(torch.tensor(rows), dim=-1)


def test_dbscan_takes_the_mean_of_the_largest_cluster() -> None:
    near_x = [[1.0, 0.01 * i] for i in range(4)]
    near_y = [[0.01 * i, 1.0] for i in range(6)]
    rows = unit([*near_x, *near_y, [-1.0, 0.0]])
    found = ClipAd(eps=0.2, min_samples=3).representative(rows, "x")
    torch.testing.assert_close(found, F.normalize(rows[4:10].mean(dim=0), dim=0))


def test_of_two_equal_clusters_the_first_counts() -> None:
    rows = unit([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 3)
    torch.testing.assert_close(ClipAd(eps=0.2, min_samples=3).representative(rows, "x"), rows[0])


def test_all_noise_falls_back_to_the_mean_with_a_warning() -> None:
    rows = unit([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    with pytest.warns(UserWarning, match=r"category 'cable': DBSCAN finds no cluster .*eps=0\.1"):
        found = ClipAd(eps=0.1, min_samples=2).representative(rows, "cable")
    torch.testing.assert_close(found, F.normalize(rows.mean(dim=0), dim=0))


def test_kde_weights_are_the_kernel_densities() -> None:
    rows = F.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    weights = np.exp(KernelDensity(bandwidth=0.3).fit(rows.numpy()).score_samples(rows.numpy()))
    wanted = (weights / weights.sum()) @ rows.double().numpy()
    np.testing.assert_allclose(kde(rows).numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_pca_points_along_the_mean(seed: int) -> None:
    rows = F.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(seed)) + 0.5, dim=-1)
    direction = pca(rows)
    assert float(direction @ rows.mean(dim=0)) > 0
    leading = torch.linalg.svd(rows - rows.mean(dim=1, keepdim=True)).Vh[0]
    assert abs(float(F.cosine_similarity(direction, leading, dim=0))) == pytest.approx(1, abs=1e-5)


def test_mean_shift_is_the_mean_and_half_text_rounds() -> None:
    rows = F.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(2)) + 0.3, dim=-1)
    mean = ClipAd(selection="mean").representative(rows, "x")
    torch.testing.assert_close(ClipAd(selection="mean_shift").representative(rows, "x"), mean)
    half = ClipAd(selection="mean_shift", half_text=True).representative(rows, "x")
    assert half.dtype == torch.float32 and torch.equal(half, half.half().float())
    assert 0 < float((half - mean).abs().max()) < 1e-3


# --- stages and taps


@pytest.mark.parametrize("features", [(4,), (6, 7), (12, 6), (6, 6), (), (30,)])
def test_blocks_that_end_no_stage_are_refused(features: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match="--set features=6,12,18,24"):
        check_stages(features, 24)


def test_a_depth_without_four_stages_is_refused() -> None:
    with pytest.raises(MethodError, match="10 blocks does not divide into 4 stages"):
        check_stages((5, 10), 10)


def test_taps() -> None:
    reference, clean = sdp(), sdp(tap="clean")
    trace = CLIP.vision.trace(BATCH)
    for layer in (6, 12, 18):
        block = CLIP.vision.blocks[layer]
        output = clean.tapped(trace, layer)
        torch.testing.assert_close(reference.tapped(trace, layer), output + block.attend(*block.qkv(output)))
        assert not torch.equal(reference.surgery_tokens(trace, layer), clean.surgery_tokens(trace, layer))
    assert torch.equal(reference.tapped(trace, 24), clean.tapped(trace, 24))


def test_some_of_the_stages() -> None:
    all_four, last = sdp().observe(BATCH), sdp(features=(24,)).observe(BATCH)
    torch.testing.assert_close(all_four["score"], last["score"])
    assert not torch.equal(all_four["map"], last["map"])


# --- scores


def test_class_probability_is_that_of_the_ordinary_image_embedding() -> None:
    observer = sdp()
    image = CLIP.vision.encode(CLIP.vision.embed(BATCH.images[:, 0]))
    wanted = anomaly_probability(image, observer.anchors.of(NAMES), 100)
    torch.testing.assert_close(observer.observe(BATCH)["score"], wanted, atol=1e-5, rtol=1e-4)


def test_reference_and_inductive_scores() -> None:
    evidence = {"score": torch.tensor([0.2, 0.6, 0.4])}
    extrema = torch.tensor([[0.0, 5.0], [0.0, 3.0], [0.0, 4.0]])
    method = ClipAd()
    torch.testing.assert_close(method.image_scores(evidence, extrema), torch.tensor([1.0, 1.0, 1.0]))
    inductive = dataclasses.replace(method, image_score="inductive")
    assert torch.equal(inductive.image_scores(evidence, extrema), evidence["score"])


def test_a_constant_part_counts_as_zero() -> None:
    assert minmax(torch.tensor([0.3, 0.3])).tolist() == [0, 0]
    one = ClipAd().image_scores({"score": torch.tensor([0.9])}, torch.tensor([[0.0, 7.0]]))
    assert one.tolist() == [0]
    constant_map = torch.tensor([[0.0, 2.0], [1.0, 2.0]])
    scores = ClipAd().image_scores({"score": torch.tensor([0.1, 0.3])}, constant_map)
    assert scores.tolist() == [0, 1]


# --- maps


def test_maps_do_not_depend_on_how_they_are_rendered(tmp_path: Path) -> None:
    for observer in (sdp(), plus(tmp_path), april(tmp_path)):
        evidence = observer.observe(BATCH)
        for size in ((84, 84), (60, 60)):
            with exact_maps():
                wanted = observer.method.maps(evidence, size)
            found = observer.method.maps(evidence, size)
            assert found.shape == (3, *size)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_gaussian_follows_the_size() -> None:
    method = ClipAd(**FIELDS)
    point = torch.zeros(1, 6, 6)
    point[0, 2, 3] = 1
    own, double = (method.maps({"map": point}, (side, side))[0] for side in (84, 168))
    pooled = F.avg_pool2d(double[None, None], 2)[0, 0]
    torch.testing.assert_close(pooled, own, atol=0.02 * float(own.max()), rtol=0)


def test_linear_layers_of_bias_alone_add_a_constant(tmp_path: Path) -> None:
    observer = plus(tmp_path, scale=0.0)
    evidence = observer.observe(BATCH)
    with exact_maps():
        difference = observer.method.maps(evidence, (84, 84)) - sdp().method.maps(evidence, (84, 84))
    anchors = observer.anchors.of(NAMES)
    direction = 100 * (anchors[:, 1] - anchors[:, 0])
    wanted = sum(torch.sigmoid(direction @ F.normalize(bias, dim=0)) for _, bias in observer.linear)
    torch.testing.assert_close(difference, torch.as_tensor(wanted)[:, None, None].expand(3, 84, 84))


# --- what a result may depend on


def test_batches_do_not_change_a_result(tmp_path: Path) -> None:
    for observer in (sdp(), plus(tmp_path), april(tmp_path)):
        whole = observer.observe(BATCH)
        for numbers in ([0], [2, 0], [1, 2]):
            some = observer.observe(part(numbers))
            for key, value in some.items():
                torch.testing.assert_close(value, whole[key][numbers], atol=2e-5, rtol=1e-4)


def test_inputs_need_not_be_square(tmp_path: Path) -> None:
    wide = tiny.batch(torch.cat([BATCH.images[:, 0], BATCH.images[:, 0, ..., :42]], dim=-1), NAMES)
    for observer in (sdp(), plus(tmp_path), april(tmp_path)):
        evidence = observer.observe(wide)
        assert {tuple(value.shape[-2:]) for value in evidence.values() if value.ndim > 1} == {(6, 9)}
        assert observer.method.maps(evidence, (84, 126)).shape == (3, 84, 126)


def test_evidence_is_float32_whatever_the_tower_computes_in(tmp_path: Path) -> None:
    clip = load_clip(Backbone("tiny-l14", "random"), dtype=torch.bfloat16)
    half = dataclasses.replace(plus(tmp_path).method).prepare(clip, WORDS).observe(BATCH)
    full = plus(tmp_path).observe(BATCH)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert float((half["map"] - full["map"]).abs().max()) < 0.2 * float(full["map"].abs().max())


def test_an_unprepared_category_is_refused() -> None:
    with pytest.raises(MethodError, match="'cable' was not prepared"):
        sdp().observe(tiny.batch(BATCH.images[:1, 0], ["cable"]))


# --- checkpoints and cards


@pytest.mark.parametrize(("kind", "name"), [(ClipAdPlus, "clip-ad+"), (AprilGan, "april-gan")])
def test_checkpoints_are_asked_for_and_checked(tmp_path: Path, kind: type[Any], name: str) -> None:
    with pytest.raises(MethodError, match=f"zsad train --method {name.replace('+', '[+]')}"):
        kind(**COMMON).prepare(CLIP, WORDS)
    other = "april-gan" if name == "clip-ad+" else "clip-ad+"
    with pytest.raises(WeightsError, match=f"of '{other.replace('+', '[+]')}', not of"):
        kind(**COMMON, checkpoint=checkpoint(tmp_path, other)).prepare(CLIP, WORDS)
    with pytest.raises(WeightsError, match=r"fc\.0\.weight is 96 x 64 in the file, 96 x 128 expected"):
        kind(**COMMON, checkpoint=checkpoint(tmp_path, name, width=64)).prepare(CLIP, WORDS)
    with pytest.raises(WeightsError, match=r"4 surplus, first fc\.2"):
        fields = {**COMMON, "features": (12, 24)}
        kind(**fields, checkpoint=checkpoint(tmp_path, name)).prepare(CLIP, WORDS)


def test_april_gan_refuses_blocks_that_are_not_there() -> None:
    with pytest.raises(MethodError, match="the backbone has blocks 1 to 24"):
        AprilGan(**{**COMMON, "features": (6, 25)}, checkpoint="x").prepare(CLIP, WORDS)


@pytest.mark.parametrize(
    ("spec", "dataset", "fields"),
    [
        ("clip-ad", "mvtec", {"eps": 0.5, "min_samples": 15, "sigma": 8.0}),
        ("clip-ad", "visa", {"eps": 1.5, "min_samples": 25, "sigma": 8.0}),
        ("clip-ad+", "visa", {"eps": 1.5, "min_samples": 25, "sigma": 2.0}),
        ("clip-ad+", "mtd", {"eps": 0.5, "min_samples": 15, "sigma": 8.0, "tap": "reference"}),
        ("clip-ad+@clean-taps", "mtd", {"tap": "clean"}),
        ("clip-ad@mean", "mtd", {"selection": "mean"}),
        ("april-gan", "visa", {"features": (6, 12, 18, 24)}),
    ],
)
def test_what_the_cards_set(spec: str, dataset: str, fields: dict[str, Any]) -> None:
    method = resolve(spec, dataset=dataset).method
    assert {name: getattr(method, name) for name in fields} == fields


def test_words_and_inductive_rule_of_the_cards() -> None:
    brain = resolve("clip-ad", dataset="brainmri")
    assert wordings(brain, {"brain": "brain"}) == {"brain": "brain ct"}
    assert wordings(resolve("clip-ad", dataset="mvtec"), {"metal_nut": "metal nut"}) == {
        "metal_nut": "metal_nut"
    }
    inductive: Any = brain.inductive
    assert inductive.image_score == "inductive" and brain.card.transductive
    april_gan = resolve("april-gan")
    assert april_gan.inductive == april_gan.method and not april_gan.card.transductive
