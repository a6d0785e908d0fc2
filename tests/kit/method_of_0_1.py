"""A user's method as it was written against zsadbench 0.1: it must keep running, unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zsadbench.clip import Clip
from zsadbench.maps import render
from zsadbench.method import OPENAI_MEAN, OPENAI_STD, Backbone, Batch, Evidence, Preprocess
from zsadbench.metrics import evaluate
from zsadbench.prompts import anchor, ensemble


@dataclass(frozen=True)
class Mine:
    """Plain tokens against two texts."""

    backbone: Backbone = Backbone("tiny-l14", "random")
    preprocess: Preprocess = Preprocess(84, mean=OPENAI_MEAN, std=OPENAI_STD)
    texts: tuple[str, str] = ("a normal {}", "a broken {}")

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> "MineObserver":
        anchors = {
            category: torch.stack([anchor(clip, ensemble([text], ["{}"], words)) for text in self.texts])
            for category, words in wordings.items()
        }
        return MineObserver(clip, anchors)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        return render(evidence["map"], size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        return evidence["map"].flatten(1).amax(1)


@dataclass(frozen=True)
class MineObserver:
    clip: Clip
    anchors: Mapping[str, Tensor]

    def observe(self, batch: Batch) -> Evidence:
        vision = self.clip.vision
        tokens = vision.project(vision.trace(batch).output)[:, 1:]
        texts = torch.stack([self.anchors[category] for category in batch.categories])
        p = (tokens @ texts.transpose(1, 2) * self.clip.logit_scale).softmax(-1)[..., 1]
        return {"map": torch.unflatten(p, 1, vision.grid(batch.images))}


def quality(maps: Tensor, masks: Tensor) -> float:
    """Judge maps of its own."""
    return float(evaluate(maps, masks)["pixel_auroc"] or 0.0)
