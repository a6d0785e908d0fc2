"""Methods that share one walk of the tower have the bits that they have alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from tests.kit import tiny
from zsadbench.clip.towers import Vision
from zsadbench.inputs import Batch
from zsadbench.method.protocol import Evidence
from zsadbench.method.registry import resolve

WORDS = {"nut": "metal nut"}
METHODS = {
    name: resolve(name, backbone="tiny-b16p", weights="random", settings={"size": "48"}).method
    for name in ("clip", "winclip", "anoclip", "clip-ad")
}


@torch.inference_mode()
def observed(names: Sequence[str], batch: Batch) -> dict[str, Evidence]:
    """Return the evidence of methods on one CLIP that nobody else has asked for anything."""
    clip = copy.copy(tiny.clip("tiny-b16p"))
    clip.vision = Vision(clip.vision.module, clip.vision.position)
    observers = {name: METHODS[name].prepare(clip, WORDS) for name in names}
    return {name: observer.observe(batch) for name, observer in observers.items()}


@pytest.mark.parametrize("count", [1, 7, 32])
def test_evidence_has_the_same_bits_alone_and_beside_others(count: int) -> None:
    batch = tiny.batch(tiny.images(0, count, 48), ["nut"] * count)
    alone = {name: observed([name], batch)[name] for name in METHODS}
    for names in ([*METHODS], [*METHODS][::-1], ["clip", "winclip"], ["anoclip", "clip"]):
        for name, evidence in observed(names, batch).items():
            assert all(torch.equal(evidence[key], value) for key, value in alone[name].items()), (name, names)
