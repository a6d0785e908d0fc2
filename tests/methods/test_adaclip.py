"""AdaCLIP: what its variants change, which texts depend on the image, its refusals, training and files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._training_adaclip import PREFIX, HybridRecipe, layer_losses
from methods.adaclip import (
    AdaClip,
    AdaClipObserver,
    anomalous_feature,
    checkpoint_shapes,
    clustered,
    prompts,
    sentences,
)
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, load_checkpoint, save_checkpoint
from zsadbench.errors import MethodError, WeightsError
from zsadbench.inputs import Backbone, Batch
from zsadbench.maps import render, smooth
from zsadbench.method.card import method_cards
from zsadbench.method.protocol import Evidence
from zsadbench.method.registry import resolve, wordings
from zsadbench.training.authors import import_checkpoint

CATEGORIES = ["bottle", "metal_nut", "bottle"]
CLIP = tiny.clip("tiny-l14", "gelu", "bicubic")


def learned(method: AdaClip) -> dict[str, Tensor]:
    """Return noise: prompts of 0.5, layers that keep lengths."""
    shapes = checkpoint_shapes(method, CLIP)
    return {n: tiny.draw(n, s, 0.5 if "static" in n else s[-1] ** -0.5) for n, s in shapes.items()}


def method_of(variant: str = "", **fields: Any) -> AdaClip:
    """Return the method on the miniature, whose own activation is QuickGELU."""
    options: dict[str, Any] = {"settings": {"size": "84", "sigma": "4"}}
    options["activation"] = "quick_gelu" if variant == "@quick-gelu" else "gelu"
    found = resolve(f"adaclip{variant}", backbone="tiny-l14", weights="random", **options).method
    return dataclasses.replace(cast(AdaClip, found), **fields)


def observer(method: AdaClip, folder: Path) -> AdaClipObserver:
    path = folder / "learned.safetensors"
    save_checkpoint(path, learned(method), Provenance("adaclip"))
    clip = tiny.clip("tiny-l14", method.backbone.activation, method.backbone.position)
    return dataclasses.replace(method, checkpoint=str(path)).prepare(
        clip, {name: name for name in CATEGORIES}
    )


def batch(size: int = 84) -> Batch:
    return tiny.batch(tiny.images(5, 3, size), CATEGORIES)


def observe(method: AdaClip, folder: Path, size: int = 84) -> Evidence:
    found = observer(method, folder).observe(batch(size))
    CLIP.vision.forget()
    return found


def test_every_variant_changes_what_its_summary_says(tmp_path: Path) -> None:
    reference = observe(method_of(), tmp_path, 112)
    changed = {}
    for name in method_cards()["adaclip"].variants:
        found = observe(method_of(f"@{name}"), tmp_path, 112)
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == {
        "no-fusion": {"score"},
        "mean-fusion": {"score"},
        "paper-fusion": {"score"},
        "full-precision": {"logit", "score"},
        "quick-gelu": {"logit", "score"},
        "antialias-positions": {"logit", "score"},
    }


def test_texts_differ_from_image_to_image_and_batches_do_not_matter(tmp_path: Path) -> None:
    found = observer(method_of(), tmp_path)
    image = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    together = found.anchors(CATEGORIES, image)
    assert not torch.allclose(together[0], together[2], atol=1e-2)  # two images of one category
    for number, name in enumerate(CATEGORIES):
        alone = found.anchors([name], image[number : number + 1])
        assert torch.allclose(alone[0], together[number], atol=1e-5)
    assert torch.allclose(together.norm(dim=-1), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("fields", "fixed"),
    [
        ({"prompt_branch": "V"}, True),
        ({"prompt_type": "S"}, True),
        ({"prompt_depth": 1}, True),
        ({"prompt_branch": "none", "prompt_type": "S"}, True),
        ({"prompt_type": "D"}, False),
        ({}, False),
    ],
)
def test_texts_that_no_image_changes_are_encoded_once(
    fields: dict[str, Any], fixed: bool, tmp_path: Path
) -> None:
    method = method_of(**fields)
    found = observer(method, tmp_path)
    assert (found.fixed is not None) == fixed
    per_image = dataclasses.replace(found, fixed=None)
    one, other = found.observe(batch()), per_image.observe(batch())
    assert all(torch.allclose(one[key], other[key], atol=1e-4) for key in one)
    CLIP.vision.forget()


def test_the_first_text_block_never_sees_a_prompt(tmp_path: Path) -> None:
    method = method_of()
    texts = sentences(method, CLIP, "metal_nut")
    assert texts.tokens.shape[0] == 48 and texts.normal == 28
    begun = CLIP.text.blocks[0](CLIP.text.embed(texts.tokens))
    assert torch.equal(texts.begun, begun)
    found = prompts(method, learned(method), "text", range(1, method.prompt_depth), torch.zeros(2, 96))
    assert sorted(found) == [1, 2, 3] and found[1].shape == (2, 5, 128)


def test_long_prompts_find_room_behind_short_sentences(tmp_path: Path) -> None:
    method = method_of(templates=("{}",), normal=("{}",), anomalous=("bad {}",), prompt_length=9)
    assert sentences(method, CLIP, "x").tokens.shape == (2, 10)
    assert observe(method, tmp_path)["logit"].isfinite().all()


def test_words_keep_underscores_and_lose_hyphens() -> None:
    resolved = resolve("adaclip", dataset="cvc_colondb")
    assert wordings(resolved, {"colon": "colon"}) == {"colon": "ColonDB"}
    assert wordings(resolve("adaclip"), {"metal_nut": "metal nut"}) == {"metal_nut": "metal_nut"}
    one, other = (sentences(AdaClip(), CLIP, words).tokens for words in ("bent-wire", "bent wire"))
    assert torch.equal(one, other)
    assert not torch.equal(sentences(AdaClip(), CLIP, "bent_wire").tokens, one)


def test_fusion_by_hand() -> None:
    """Four patches in two clusters of unequal size: clusters count alike, not patches."""
    patches = F.normalize(torch.eye(4)[[0, 0, 0, 1]] + 1e-3 * torch.rand(4, 4), dim=-1)[None]
    logit = torch.tensor([3.0, 2.0, 1.0, 4.0])
    method = AdaClip(clusters=2)
    by_cluster = anomalous_feature(method, patches, logit)
    assert torch.allclose(by_cluster, F.normalize(torch.tensor([1.0, 1, 0, 0]), dim=0), atol=5e-3)
    plain = anomalous_feature(dataclasses.replace(method, fusion="mean"), patches, logit)
    assert torch.allclose(plain, F.normalize(torch.tensor([3.0, 1, 0, 0]), dim=0), atol=5e-3)
    paper = anomalous_feature(dataclasses.replace(method, fusion="paper"), patches, logit)
    assert torch.allclose(paper, torch.eye(4)[1], atol=5e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fusion", ["clusters", "paper", "mean"])
def test_equal_patches_and_few_patches_give_a_number(fusion: Any) -> None:
    method = AdaClip(fusion=fusion)
    for count in (4, 400):
        same = F.normalize(torch.ones(2, count, 8), dim=-1)
        found = anomalous_feature(method, same, torch.full((count,), -200.0))
        assert torch.allclose(found, same[0, 0])


def test_clusters_are_the_same_for_every_image() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    method = AdaClip(clusters=5)
    torch.manual_seed(0)
    first = clustered(method, rows)
    assert torch.equal(clustered(method, rows), first)
    assert len(first.unique()) == 5  # type: ignore[no-untyped-call]
    assert not torch.equal(clustered(dataclasses.replace(method, cluster_seed=1), rows), first)


def test_maps_are_smoothed_probabilities_of_enlarged_logits() -> None:
    method, size = method_of(sigma=2.0), (168, 168)
    logit = 5 * torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(logit[:, None], size, mode="bilinear", align_corners=True)[:, 0].sigmoid()
    assert torch.allclose(method.maps({"logit": logit}, size), smooth(large, 4.0), atol=1e-5)
    unsmoothed = dataclasses.replace(method, sigma=0.0).maps({"logit": logit}, size)
    assert torch.allclose(unsmoothed, render(logit, size, align_corners=True).sigmoid())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ()}, "there are blocks 1 to 24"),
        ({"features": (6, 25)}, "there are blocks 1 to 24"),
        ({"prompt_depth": 0}, "prompt_depth 0: there are blocks 1 to 24"),
        ({"prompt_length": 0}, "choose 1 to 76"),
        ({"prompt_length": 77}, "choose 1 to 76"),
        ({"clusters": 0}, "clusters=0"),
        ({"cluster_seed": -1}, "cluster_seed=-1"),
    ],
)
def test_parameters_that_do_not_fit_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_of(**fields).prepare(CLIP, {})


def test_unknown_category_and_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="category 'zipper' was not prepared"):
        observer(method_of(), tmp_path).observe(tiny.batch(tiny.images(0, 1, 84), ["zipper"]))
    CLIP.vision.forget()
    with pytest.raises(MethodError, match="needs a checkpoint"):
        method_of().prepare(CLIP, {"bottle": "bottle"})


def test_a_checkpoint_holds_what_its_branch_and_kind_learn() -> None:
    def kinds(**fields: Any) -> set[str]:
        return {name.split(".")[0] for name in checkpoint_shapes(method_of(**fields), CLIP)}

    layers = {"patch_token_layer", "cls_token_layer"}
    generators = {"dynamic_visual_prompt_generator", "dynamic_text_prompt_generator"}
    assert kinds() == layers | generators | {"text_prompter", "visual_prompter"}
    assert len(checkpoint_shapes(method_of(), CLIP)) == 38
    assert kinds(prompt_type="S", prompt_branch="V") == layers | {"visual_prompter"}
    assert kinds(prompt_type="D", prompt_branch="V") == layers | generators
    assert kinds(prompt_branch="none") == layers


# --- training ---


def test_dice_counts_rows_or_images() -> None:
    p = torch.rand(2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    masks = torch.zeros(2, 5, 4)
    masks[0, 1, :2] = 1
    rows = [
        float(layer_losses(p[:, :, r : r + 1], masks[:, r : r + 1], "rows")["dice_anomalous"])
        for r in range(5)
    ]
    assert float(layer_losses(p, masks, "rows")["dice_anomalous"]) == pytest.approx(sum(rows) / 5, rel=1e-5)
    one = [float(layer_losses(p[n : n + 1], masks[n : n + 1], "image")["dice_normal"]) for n in range(2)]
    assert float(layer_losses(p, masks, "image")["dice_normal"]) == pytest.approx(sum(one) / 2, rel=1e-5)


def test_start_values() -> None:
    found = HybridRecipe().start(checkpoint_shapes(method_of(), CLIP))
    assert 0.015 < float(found["text_prompter.static_prompts.0"].std()) < 0.025
    weight, bias = (found[f"patch_token_layer.head.0.{kind}"] for kind in ("weight", "bias"))
    assert 0.9 * 128**-0.5 < float(weight.abs().max()) <= 128**-0.5
    assert 0.8 * 128**-0.5 < float(bias.abs().max()) <= 128**-0.5


# --- the authors' file ---


def test_import_of_the_flat_file_with_its_prefix(tmp_path: Path) -> None:
    tensors, options = learned(method_of()), {"backbone": "tiny-l14", "weights": "random"}
    file = tmp_path / "pretrained.pth"
    torch.save({PREFIX + name: value for name, value in tensors.items()}, file)
    out, about = import_checkpoint([file], "adaclip", trained_on=["mvtec", "cvc_colondb"], **options)  # type: ignore[arg-type]
    assert about.datasets == ("mvtec", "cvc_colondb") and about.dataset == "mvtec + cvc_colondb"
    assert not about.complete and about.unhashed == 1725 + 380
    held = load_checkpoint(out, "adaclip", checkpoint_shapes(method_of(), CLIP))
    assert all(torch.equal(held[name], value) for name, value in tensors.items())

    for change, message in (
        ({PREFIX + "cls_token_layer.head.0.bias": None}, "1 missing"),
        ({"text_prompter.static_prompts.0": torch.ones(5, 128)}, "1 surplus"),
        ({PREFIX + "text_prompter.static_prompts.0": torch.ones(4, 128)}, "is 4 x 128 in the file, 5 x 128"),
        (
            {PREFIX + "text_prompter.static_prompts.0": torch.full((5, 128), torch.nan)},
            "infinite or undefined",
        ),
    ):
        whole = {PREFIX + name: value for name, value in tensors.items()} | change
        torch.save({name: value for name, value in whole.items() if value is not None}, file)
        with pytest.raises(WeightsError, match=message):
            import_checkpoint([file], "adaclip", out=tmp_path / "other.safetensors", **options)  # type: ignore[arg-type]


def test_reference_is_what_the_authors_run() -> None:
    method = cast(AdaClip, resolve("adaclip").method)
    assert method.backbone == Backbone("ViT-L-14-336", "openai", "gelu", "bicubic")
    assert (method.preprocess.size, method.preprocess.rgb) == (518, "before")
    small = cast(AdaClip, resolve("adaclip", backbone="ViT-B-16", weights="random").method)
    assert small.features == (3, 6, 9, 12) and small.sigma == pytest.approx(4 * 224 / 518)
    assert small.backbone.position == "bicubic"
