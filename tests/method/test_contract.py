"""Every card and variant keeps the contract, and the contract notices what breaks it."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest
import torch

import zsadbench
from tests.kit import tiny, toy
from zsadbench.clip.towers import Clip, load_clip
from zsadbench.inputs import Backbone
from zsadbench.method.card import method_cards
from zsadbench.method.contract import Check, check
from zsadbench.method.registry import resolve
from zsadbench.method.trial import Load, miniature

BACKBONES = Path(zsadbench.__file__).parent / "clip" / "backbones"
SPECS = [spec for id, card in method_cards().items() for spec in (id, *(f"{id}@{v}" for v in card.variants))]

FEWER = {"adaclip": {"templates": "a photo of a {}."}, "bayes-pfl": {"draws": 2}}
"""Fewer texts for variants of methods that read hundreds for every image."""


@cache
def load(backbone: Backbone, dtype: torch.dtype) -> Clip:
    if dtype == torch.float32:
        return tiny.load(backbone)
    return load_clip(backbone, dtype=dtype)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """What loads the miniatures at half their widths, in a quarter of the time for each step."""
    folder = tmp_path_factory.mktemp("narrow")

    @cache
    def load_narrow(backbone: Backbone, dtype: torch.dtype) -> Clip:
        config = json.loads((BACKBONES / f"{backbone.name}.json").read_text())
        config["embed_dim"] //= 2
        config["vision_cfg"]["width"] //= 2
        config["vision_cfg"]["head_width"] //= 2
        config["text_cfg"]["width"] //= 2
        path = folder / f"{backbone.name}.json"
        path.write_text(json.dumps(config))
        return load_clip(dataclasses.replace(backbone, name=str(path)), dtype=dtype)

    return load_narrow


def failed(checks: list[Check]) -> dict[str, str]:
    return {point.name: point.words for point in checks if not point.passed}


@pytest.mark.parametrize("spec", SPECS)
def test_every_card_and_variant(spec: str, narrow: Load) -> None:
    id, _, variant = spec.partition("@")
    fewer = FEWER.get(id) if variant and variant != "mean-draw" else None
    checks = check(miniature(spec, settings=fewer), narrow if variant else load)
    assert failed(checks) == {}
    assert len(checks) == 13


def test_a_users_file(tmp_path: Path) -> None:
    checks = check(resolve(toy.write(tmp_path)), load)
    assert failed(checks) == {}
    words = {point.name: point.words for point in checks}
    assert words["evidence is lean"] == "148 bytes an image, 1.0 numbers per patch"
    assert words["map parameters"] == "only maps() uses sigma"
    assert words["unknown category"] == "refused: category 'carpet' was not prepared"


MISTAKES = {
    "statistics over the batch": (
        "        return {",
        "        grid = grid - grid.mean()\n        return {",
        {"any batch size", "any order"},
        "compute every image for itself",
    ),
    "state from image to image": (
        "        return {",
        "        grid = grid + self.seen\n        self.seen += len(grid)\n        return {",
        {"any batch size", "any order"},
        "keep no state from image to image",
    ),
    "noise without a seed": (
        "        return {",
        "        grid = grid + 0.5 * __import__('torch').randn_like(grid)\n        return {",
        {"input untouched", "same again", "any batch size", "any order", "map parameters"},
        "generator with a fixed seed",
    ),
    "writing into the batch": (
        "images = batch.images\n",
        "images = batch.images.mul_(2)\n",
        {"input untouched"},
        "work on a copy",
    ),
    "pixels as evidence": (
        '"score": grid',
        '"pixels": images[:, 0].mean(1).float(), "score": grid',
        {"evidence is lean"},
        "leave up-sampling to maps()",
    ),
    "one number type only": (
        "images = batch.images\n",
        "images = batch.images @ __import__('torch').eye(84)\n",
        {"half precision"},
        "RuntimeError",
    ),
    "double precision": ('{"map": grid,', '{"map": grid.double(),', {"evidence"}, "return float32"),
    "not finite": ('{"map": grid,', '{"map": grid / 0,', {"evidence"}, "infinite or undefined"),
    "another first axis": ('{"map": grid,', '{"map": grid[:1],', {"evidence"}, "first axis is the image"),
    "any category": ("if category not in self.categories", "if False", {"unknown category"}, "is observed"),
    "a foreign error": ("raise MethodError", "raise KeyError", {"unknown category"}, "raises KeyError"),
    "constant maps": (
        'render(evidence["map"],',
        'render(0 * evidence["map"],',
        {"maps"},
        "one value everywhere",
    ),
    "maps of one size": ('evidence["map"], size,', 'evidence["map"], (84, 84),', {"maps"}, "it must be"),
    "maps that see each other": (
        'render(evidence["map"],',
        'render(evidence["map"] / evidence["map"].max(),',
        {"maps"},
        "treat every image for itself in maps()",
    ),
    "a parameter the observer uses": (
        '("sigma",)',
        '("sigma", "gain")',
        {"map parameters"},
        "take 'gain' from map_parameters",
    ),
    "scores that see each other": (
        'return evidence["score"]',
        'return evidence["score"] / evidence["score"].max()',
        {"transductive or not"},
        "declare transductive",
    ),
    "one score for all": (
        'return evidence["score"]',
        'return evidence["score"].sum()',
        {"image scores", "transductive or not"},
        "one number per image",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake: str, tmp_path: Path) -> None:
    old, new, points, advice = MISTAKES[mistake]
    found = failed(check(resolve(toy.write(tmp_path, old, new)), load))
    assert found.keys() == points
    assert any(advice in words for words in found.values()), found


def test_a_method_may_keep_as_much_evidence_as_it_declares(tmp_path: Path) -> None:
    old, new, _, _ = MISTAKES["pixels as evidence"]
    spec = toy.write(tmp_path, old, new)
    path = Path(spec.rpartition(":")[0])
    plain = path.read_text()
    for number, points in ((197, set[str]()), (190, {"evidence is lean"})):
        flag = f"    evidence_per_patch: ClassVar[int] = {number}\n    map_parameters"
        path.write_text(plain.replace("    map_parameters", flag, 1))
        assert failed(check(resolve(spec), load)).keys() == points
    assert method_cards()["bayes-pfl"].evidence_per_patch == 120
    assert method_cards()["clip"].evidence_per_patch == 16


def test_an_exception_is_reported_with_its_place(tmp_path: Path) -> None:
    spec = toy.write(tmp_path, "images = batch.images\n", "images = batch.pictures\n")
    checks = check(resolve(spec), load)
    assert [point.name for point in checks] == ["parameters only", "evidence"]
    assert "AttributeError" in checks[-1].words
    assert "(mine.py:" in checks[-1].words


def test_an_order_dependent_method_is_not_asked_for_order(tmp_path: Path) -> None:
    state = "        grid = grid + self.seen\n        self.seen += 1\n        return {"
    spec = toy.write(tmp_path, "        return {", state)
    path = Path(spec.rpartition(":")[0])
    flag = "    order_dependent: ClassVar[bool] = True\n    map_parameters"
    path.write_text(path.read_text().replace("    map_parameters", flag, 1))
    points = {point.name: point for point in check(resolve(spec), load)}
    assert points["any order"].passed
    assert "not asked" in points["any order"].words
    # The batch is still no excuse: state must go on image by image.
    assert not points["any batch size"].passed


def test_a_method_that_relates_images_is_asked_on_one_category_and_must_say_so(tmp_path: Path) -> None:
    spec = toy.write_relating(tmp_path)
    found = failed(check(resolve(spec), load))
    assert found.keys() == {"transductive or not"}
    assert "relate(), so no map stands alone; declare transductive" in found["transductive or not"]
    path = Path(spec.rpartition(":")[0])
    flag = "    transductive: ClassVar[bool] = True\n    map_parameters"
    path.write_text(path.read_text().replace("    map_parameters", flag, 1))
    checks = check(resolve(spec), load)
    assert failed(checks) == {}
    words = {point.name: point.words for point in checks}
    assert words["any batch size"].startswith("batches of 1, 2 and 3 agree")
    assert words["transductive or not"].startswith("maps use all images of a category")


@pytest.mark.parametrize(
    ("old", "new", "points", "advice"),
    [
        ("- mean,", "- evidence['map'][:1],", {"any order"}, "keep no state"),
        ('.float() - mean, "score"', '.double() - mean, "score"', {"evidence"}, "return float32"),
        ("- mean,", "[:2],", {"evidence"}, "has 2 rows for 3 images"),
    ],
)
def test_mistakes_in_relate_are_noticed(
    tmp_path: Path, old: str, new: str, points: set[str], advice: str
) -> None:
    spec = toy.write_relating(tmp_path, old, new)
    found = failed(check(resolve(spec), load))
    assert points <= found.keys() and any(advice in words for words in found.values()), found


def test_miniature_takes_the_patch_of_the_backbone() -> None:
    small = miniature("clip").method
    assert (small.backbone.name, small.preprocess.size) == ("tiny-l14", 84)
    small = miniature("winclip", settings={"scales": "2"}).method
    assert (small.backbone.name, small.preprocess.size) == ("tiny-b16p", 80)
    assert small.scales == (2,)  # type: ignore[attr-defined]
