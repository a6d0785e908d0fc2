"""AnoCLIP+: its optimiser, its losses, and what a result may depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.anoclip_plus import Adam, AnoClipPlus, AnoClipPlusObserver, positions, seeded, self_training
from tests.kit import tiny
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.maps import upsample

TOLERANCE = 1e-4  # of the range of a map; Adam's first steps amplify rounding
IMAGES = tiny.images(5, 8, 84)
NAMES = ["bottle", "carpet", "bottle", "bottle", "carpet", "bottle", "carpet", "bottle"]


def observer(**fields: Any) -> AnoClipPlusObserver:
    method = AnoClipPlus(
        Backbone("tiny-l14", "random"),
        Preprocess(84),
        templates=("a photo of the {}", "a photo of a {}"),
        texture_templates=("a photo of {}",),
        augment=False,
        steps=3,
        **fields,
    )
    return method.prepare(tiny.clip("tiny-l14"), {"bottle": "bottle", "carpet": "carpet"})


def batch(order: list[int]) -> Batch:
    made = tiny.batch(IMAGES[order], [NAMES[number] for number in order])
    return dataclasses.replace(made, keys=[f"{number}.png" for number in order])


def grids(order: list[int], size: int, **fields: Any) -> Tensor:
    """Return the probability grids of images in ``order``, observed in batches of ``size``."""
    one = observer(**fields)
    with torch.inference_mode():
        parts = [one.observe(batch(order[i : i + size]))["map"] for i in range(0, len(order), size)]
    return torch.cat(parts)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / (b.max() - b.min()))


@pytest.mark.parametrize("adapter", ["text", "linear"])
def test_reset_does_not_depend_on_batch_size_or_order(adapter: str) -> None:
    order = list(range(8))
    whole = grids(order, 8, adapter=adapter, reset=True)
    assert apart(grids(order, 3, adapter=adapter, reset=True), whole) < TOLERANCE
    assert apart(grids(order, 1, adapter=adapter, reset=True), whole) < TOLERANCE
    shuffled = [5, 2, 7, 0, 3, 6, 1, 4]
    assert apart(grids(shuffled, 3, adapter=adapter, reset=True), whole[shuffled]) < TOLERANCE


def test_reference_carries_the_optimiser_within_a_category() -> None:
    fresh, carried = grids(list(range(8)), 8, reset=True), grids(list(range(8)), 3)
    first = [0, 1]  # the first bottle and the first carpet
    assert apart(carried[first], fresh[first]) < TOLERANCE
    for number in range(2, 8):
        assert apart(carried[[number]], fresh[[number]]) > 10 * TOLERANCE


def test_reference_does_not_depend_on_batch_size_nor_on_other_categories() -> None:
    carried = grids(list(range(8)), 3)
    assert apart(grids(list(range(8)), 8), carried) < TOLERANCE
    carpets = [number for number in range(8) if NAMES[number] == "carpet"]
    assert apart(grids(carpets, 1), carried[carpets]) < TOLERANCE


def test_a_fresh_observer_repeats_exactly_and_leaves_torch_s_stream_alone() -> None:
    state = torch.get_rng_state()
    assert torch.equal(grids([0, 2, 3], 3), grids([0, 2, 3], 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert apart(grids([0, 2, 3], 3, seed=7), grids([0, 2, 3], 3)) > 10 * TOLERANCE


def test_works_outside_inference_mode_too() -> None:
    with torch.inference_mode():
        inside = observer().observe(batch([0]))["map"]
    outside = observer().observe(batch([0]))["map"]
    assert torch.equal(inside, outside) and not outside.requires_grad


def test_optimiser_is_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(5, 4, generator=generator), torch.randn(5, generator=generator)]
    theirs = [p.clone().requires_grad_() for p in ours]
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    adam = Adam(lr=1e-2, weight_decay=0.1)
    for _ in range(6):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.clone()
        reference.step()
        adam.update(ours, gradients)
        for mine, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, wanted.detach(), rtol=1e-6, atol=1e-7)


def test_tiles_of_frames_of_any_shape_are_adapted_together() -> None:
    method = {"adapter": "linear", "reset": True}
    frames = torch.tensor([[84, 112], [84, 100], [126, 84], [84, 84]])
    tiles = IMAGES.view(4, 2, 3, 84, 84)

    def observed(numbers: list[int]) -> Tensor:
        made = tiny.batch(tiles[numbers], [NAMES[number] for number in numbers])
        keys = [f"{number}.png" for number in numbers]
        with torch.inference_mode():
            evidence = observer(**method).observe(dataclasses.replace(made, keys=keys, frame=frames[numbers]))
        return evidence["map"]

    whole = observed([0, 1, 2, 3])
    assert whole.shape == (4, 2, 6, 6)
    for numbers in ([3], [2, 0], [1, 2]):
        assert apart(observed(numbers), whole[numbers]) < TOLERANCE


def test_inputs_need_not_be_square() -> None:
    wide = tiny.batch(torch.cat([IMAGES[:2], IMAGES[:2, ..., :42]], dim=-1), NAMES[:2])
    one = observer(reset=True)
    with torch.inference_mode():
        evidence = one.observe(wide)
    assert evidence["map"].shape == (2, 1, 6, 9)
    assert one.method.maps(evidence, (84, 126)).shape == (2, 84, 126)


def test_losses_are_those_of_the_two_way_softmax() -> None:
    cosines = torch.randn(3, 2, 25, 2, generator=torch.Generator().manual_seed(1))
    p = cosines.softmax(dim=-1)
    soft, hard = self_training(cosines[..., 1] - cosines[..., 0])
    clean, noisy = p[:, 0], p[:, 1]
    torch.testing.assert_close(soft, -(clean * clean.log()).sum(-1).mean(-1))
    torch.testing.assert_close(hard, -(noisy[..., 1].log() + clean[..., 0].log()).mean(-1))


def test_losses_of_tiles_run_over_the_pixels_of_each_frame() -> None:
    logits = torch.randn(2, 2, 2, 16, generator=torch.Generator().manual_seed(2))
    wide, tall = positions(logits, torch.tensor([[8, 12], [10, 8]]), 8)
    assert wide.shape == (1, 2, 8, 12) and tall.shape == (1, 2, 10, 8)
    left, right = (upsample(logits[0, :, t].view(2, 4, 4), (8, 8), align_corners=True) for t in (0, 1))
    torch.testing.assert_close(wide[0, ..., :4], left[..., :4])
    torch.testing.assert_close(wide[0, ..., 4:8], (left[..., 4:] + right[..., :4]) / 2)
    top, bottom = (upsample(logits[1, :, t].view(2, 4, 4), (8, 8), align_corners=True) for t in (0, 1))
    torch.testing.assert_close(tall[0, :, :2], top[:, :2])
    torch.testing.assert_close(tall[0, :, 8:], bottom[:, 6:])


def test_draws() -> None:
    draw = seeded(3)
    noise = draw("a.png", "noise", 0, (200, 300), 0.055)
    assert noise.dtype == torch.float32
    assert float(noise.std()) == pytest.approx(0.055, rel=0.01) and abs(float(noise.mean())) < 1e-3
    weight = draw("a.png", "weight", 0, (200, 300), (3 * 300) ** -0.5)
    assert float(weight.abs().max()) == pytest.approx(300**-0.5, rel=1e-3)
    assert float(weight.std()) == pytest.approx((3 * 300) ** -0.5, rel=0.01)
    others = [
        seeded(4)("a.png", "noise", 0, (4,), 1.0),
        draw("b.png", "noise", 0, (4,), 1.0),
        draw("a.png", "noise", 1, (4,), 1.0),
    ]
    assert not any(torch.equal(other, draw("a.png", "noise", 0, (4,), 1.0)) for other in others)
    assert torch.equal(draw("a.png", "noise", 0, (4,), 1.0), seeded(3)("a.png", "noise", 0, (4,), 1.0))
