"""MuSc: tiles, halves and subsets, what its variants and data sets change, and what it refuses."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods import musc
from methods.musc import MuSc, factors, mean_distance, mutual_scores, nearest, patches, product, rescored
from tests.kit import tiny
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone
from zsadbench.method import Evidence, method_cards, resolve

CPU = torch.device("cpu")


def quiet(done: float) -> None:
    """Take how far it is and do nothing."""


def method(variant: str = "", **settings: Any) -> MuSc:
    given = {"size": 84, **settings}
    return cast(MuSc, resolve(f"musc{variant}", backbone="tiny-l14", weights="random", settings=given).method)


def observe(chosen: MuSc, count: int = 6) -> Evidence:
    backbone = chosen.backbone
    clip = tiny.clip("tiny-l14", backbone.activation, backbone.position)
    batch = tiny.batch(tiny.images(3, count, chosen.preprocess.size), ["carpet"] * count)
    return chosen.prepare(clip, {"carpet": "carpet"}).observe(batch)


def relate(chosen: MuSc, evidence: Evidence) -> Evidence:
    return chosen.relate(evidence, CPU, quiet)


def drawn(count: int, side: int = 4, width: int = 24) -> Tensor:
    return torch.randn(count, side, side, width, generator=torch.Generator().manual_seed(count))


def test_every_variant_changes_what_its_summary_says() -> None:
    reference = relate(method(), observe(method()))
    changed = {}
    for name in method_cards()["musc"].variants:
        found = relate(method(f"@{name}"), observe(method(f"@{name}")))
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == {
        "no-rescore": set(),
        "quick-gelu": set(),  # another tower than the card's has the activation of its own weights
        "one-degree": {"map"},
        "bicubic-antialias": set(),  # the tower's own grid: nothing is resized
    }
    assert resolve("musc").method.backbone == Backbone("ViT-L-14-336", "openai", "gelu", "bicubic")
    assert resolve("musc@quick-gelu").method.backbone.activation == "quick_gelu"
    assert method("@bicubic-antialias").backbone.position == "bicubic-antialias"
    extrema = torch.tensor([[0.0, float(n)] for n in range(6)])
    assert torch.equal(method("@no-rescore").image_scores(reference, extrema), extrema[:, 1])
    assert not torch.equal(method().image_scores(reference, extrema), extrema[:, 1])


def test_what_hangs_on_the_dataset() -> None:
    rules = {}
    for name in ("mvtec", "btad", "visa", "visa_pytorch", "demo"):
        found = resolve("musc", dataset=name)
        rules[name] = (cast(MuSc, found.method).windows, found.mask_resize, found.size)
        assert found.constants_per_dataset and found.relates and found.whole_categories
        assert cast(MuSc, found.inductive).image_score == "maximum"
    assert rules == {
        "mvtec": ((1, 2, 3), "all", "frame"),
        "btad": ((1, 2, 3), "all", "frame"),
        "visa": ((1, 8, 9), "any", "frame"),
        "visa_pytorch": ((1, 8, 9), "any", "frame"),
        "demo": ((1, 2, 3), "bilinear50", "frame"),
    }
    small = cast(MuSc, resolve("musc", backbone="demo", weights="demo").method)
    assert small.features == (2, 4, 6, 8) and small.degrees == (1, 3, 5)


def test_scores_are_the_mean_distance_to_the_nearest_patches_of_the_nearest_images() -> None:
    pictures = drawn(9)
    for degree in (1, 3, 5):
        features = [patches(one, degree).double() for one in pictures]
        wanted = []
        for i, own in enumerate(features):
            far = [torch.cdist(own, other).amin(1) for j, other in enumerate(features) if j != i]
            wanted.append(torch.stack(far).sort(dim=0).values[:2].mean(dim=0))  # int(0.3 * 8)
        found = mutual_scores(pictures, degree, 0.3, quiet)
        assert torch.allclose(found, torch.stack(wanted), atol=2e-6)


def test_neighbourhoods_are_averaged_before_their_length_is_taken() -> None:
    picture = drawn(1)[0]
    wanted = torch.stack([picture[0:2, 0:2].mean((0, 1)), picture[0:3, 0:3].mean((0, 1))])
    assert torch.allclose(patches(picture, 3)[[0, 5]], F.normalize(wanted, dim=-1), atol=1e-6)
    assert torch.allclose(patches(picture, 1), F.normalize(picture.flatten(0, 1), dim=-1))


def test_any_tile_gives_every_image_all_others_once_and_in_order() -> None:
    pictures = drawn(7)
    whole = list(nearest(pictures, 3, 7, half=False))
    assert [tuple(one.shape) for one in whole] == [(6, 16)] * 7
    for tile in (1, 2, 3, 5):
        for one, other in zip(nearest(pictures, 3, tile, half=False), whole, strict=True):
            assert torch.allclose(one, other, atol=1e-6)
    direct = (patches(pictures[4], 3) @ patches(pictures[6], 3).T).amax(dim=1)
    assert torch.allclose(whole[4][5], direct, atol=1e-6)


@pytest.mark.parametrize(("distance", "allowed"), [(0.03, 2e-4), (0.14, 2e-4), (0.4, 6e-5), (0.71, 4e-5)])
def test_two_more_columns_save_small_distances_in_half_precision(distance: float, allowed: float) -> None:
    generator = torch.Generator().manual_seed(1)
    base = F.normalize(torch.randn(64, 1024, generator=generator), dim=-1)
    noise = F.normalize(torch.randn(64, 1024, generator=generator), dim=-1)
    other = F.normalize(base + distance * noise, dim=-1)
    wanted = (base.double() - other.double()).norm(dim=-1)

    def error(left: Tensor, right: Tensor) -> float:
        found = mean_distance(product(left, right).amax(dim=1)[None], 1.0)
        return float((found - wanted).abs().max())

    left, right = factors(base, half=True)[0], factors(other, half=True)[1]
    assert left.dtype == torch.float16 and left.shape == right.shape == (64, 1032)
    assert error(left, right) <= allowed
    if distance < 0.1:
        assert error(base.half(), other.half()) > 4 * allowed


def test_half_precision_gives_the_scores_of_full_precision() -> None:
    pictures = drawn(6)
    for full, half in zip(
        nearest(pictures, 3, 2, half=False), nearest(pictures, 3, 2, half=True), strict=True
    ):
        assert torch.allclose(mean_distance(full, 0.3), mean_distance(half, 0.3), atol=1e-3)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest tensor of float32 that any step makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            if isinstance(one, Tensor) and one.dtype == torch.float32:
                self.numbers = max(self.numbers, one.numel())
        return made


def test_features_of_all_images_are_never_there_at_once_in_float32() -> None:
    count, side, width = 40, 4, 256
    evidence = {"tokens": drawn(count, side, width)[:, None].half(), "token": torch.ones(count, 8)}
    with Largest() as watch:  # type: ignore[no-untyped-call]
        relate(method(), evidence)
    assert watch.numbers < count * side * side * width / 4


def test_subsets_are_judged_as_if_they_were_alone() -> None:
    chosen = method(group=10)
    evidence = {"tokens": drawn(21)[:, None].half(), "token": torch.ones(21, 8)}
    found = relate(chosen, evidence)["map"]
    assert found.shape == (21, 4, 4)
    for start in range(3):  # 21 images in subsets of at most 10: every third one
        part = {name: value[start::3] for name, value in evidence.items()}
        assert torch.equal(found[start::3], relate(method(), part)["map"])
    few = {name: value[:10] for name, value in evidence.items()}
    assert torch.equal(relate(chosen, few)["map"], relate(method(), few)["map"])


def test_it_tells_how_far_it_is_and_stops_where_it_is_told() -> None:
    evidence = observe(method())
    heard: list[float] = []
    method().relate(evidence, CPU, heard.append)
    assert heard == sorted(heard) and len(set(heard)) == len(heard) and heard[-1] == 1

    def stop(done: float) -> None:
        if done > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method().relate(evidence, CPU, stop)


def test_tiles_are_halved_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = drawn(7)
    wanted, sides = mutual_scores(pictures, 3, 0.3, quiet), []

    def small(left: Tensor, right: Tensor) -> Tensor:
        sides.append(len(left) // 16)
        if len(left) > 16:
            raise torch.OutOfMemoryError("no room")
        return product(left, right)

    monkeypatch.setattr(musc, "product", small)
    assert torch.allclose(mutual_scores(pictures, 3, 0.3, quiet), wanted, atol=1e-6)
    assert max(sides) > 1 and sides[-1] == 1
    monkeypatch.setattr(musc, "product", lambda left, right: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mutual_scores(pictures, 3, 0.3, quiet)


def test_equal_images_have_no_distance() -> None:
    pictures = drawn(1).expand(6, -1, -1, -1)
    assert float(mutual_scores(pictures, 3, 0.3, quiet).abs().max()) < 1e-3
    tokens = F.normalize(torch.ones(6, 8), dim=-1)
    evidence = {"map": torch.zeros(6, 4, 4), "token": tokens}
    scores = method().image_scores(evidence, torch.zeros(6, 2))
    assert torch.equal(scores, torch.zeros(6))


def test_look_alikes_are_weighted_by_cosine() -> None:
    tokens = F.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=-1)
    scores = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.equal(rescored(scores, tokens, [1]), scores.float())
    assert rescored(scores, tokens, [2])[0] == pytest.approx((1 * 0 + 0.8 * 0.5) / 1.8)
    whole = rescored(scores, tokens, [3])
    assert torch.equal(rescored(scores, tokens, [9]), whole)  # more than there are: all of them
    assert torch.allclose(rescored(scores, tokens, [1, 3]), (scores.float() + whole) / 2)


def test_how_many_images_it_needs_follows_from_the_share() -> None:
    assert MuSc().fewest == 5
    for share, fewest in ((1.0, 2), (0.5, 3), (0.25, 5), (0.1, 11)):
        assert method(share=share).fewest == fewest
        assert musc.kept(fewest - 1, share) == 1 and musc.kept(fewest - 2, share) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "share=0 must be a part"),
        ({"share": 1.5}, "share=1.5 must be a part"),
        ({"degrees": (1, 2)}, "must be odd numbers of patches"),
        ({"degrees": ()}, "must be odd numbers of patches"),
        ({"windows": (0, 2)}, "must be numbers of images"),
        ({"group": 9}, "group=9: give 0 or at least 10 images"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        MuSc(**settings)


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(MethodError, match="are not all among 24 image blocks"):
        observe(method(features=(6, 25)))
