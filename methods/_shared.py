"""What several methods have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, anchor, ensemble
from zsadbench.errors import MethodError

# The template list of WinCLIP's compositional ensemble (Jeong et al., 2023).
TEMPLATES_22 = (
    "a cropped photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
)
FLAWLESS = (
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
FLAWED = ("{} with flaw", "{} with defect", "{} with damage")
NORMAL_STATES = ("{}", *FLAWLESS)
ANOMALOUS_STATES = ("damaged {}", *FLAWED)


class Anchors:
    """Text anchors of every category: ``table[category]`` (2, C), rows normal and anomalous, unit length."""

    def __init__(self, table: Mapping[str, Tensor]) -> None:
        self.table = table

    def of(self, categories: Sequence[str]) -> Tensor:
        """Return the anchors (B, 2, C) of each image's category.

        Raises:
            MethodError: if a category was not prepared.
        """
        try:
            return torch.stack([self.table[category] for category in categories])
        except KeyError as error:
            raise MethodError(
                f"category {error} was not prepared; prepared: {', '.join(self.table)}"
            ) from None


def ensemble_anchors(
    clip: Clip,
    wordings: Mapping[str, str],
    normal: Sequence[str],
    anomalous: Sequence[str],
    templates: Sequence[str],
    *,
    normalise_prompts: bool = False,
) -> Anchors:
    """Return anchors of states x templates for each category of ``wordings``."""
    return Anchors(
        {
            category: torch.stack(
                [
                    anchor(clip, ensemble(states, templates, words), normalise_prompts=normalise_prompts)
                    for states in (normal, anomalous)
                ]
            )
            for category, words in wordings.items()
        }
    )


def anomaly_probability(features: Tensor, anchors: Tensor, scale: float = 1.0) -> Tensor:
    """Return the softmax probability (B, ...) of the anomalous anchor for ``features`` (B, ..., C).

    ``anchors`` (B, 2, C); cosines are multiplied by ``scale`` (1 / temperature).
    """
    unit = F.normalize(features.float(), dim=-1)
    difference = (anchors[:, 1] - anchors[:, 0])[:, :, None]
    logits = unit.flatten(1, -2) @ difference if unit.ndim > 2 else unit[:, None] @ difference
    return torch.sigmoid(scale * logits[..., 0]).view(unit.shape[:-1])


def as_grid(values: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Return patch values (B, N) as grids (B, gh, gw), square unless ``grid`` says otherwise."""
    side = round(values.shape[-1] ** 0.5)
    return torch.unflatten(values, -1, grid or (side, side))
