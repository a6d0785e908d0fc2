"""Losses of the trained methods, on probability maps (B, 2, H, W): channel 0 normal, 1 anomalous."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def focal(probabilities: Tensor, masks: Tensor, gamma: float = 2.0, smoothing: float = 1e-5) -> Tensor:
    """Return the focal loss (Lin et al., 2017) of ``probabilities`` (B, 2, H, W), the mean over all pixels.

    ``masks`` (B, H, W) are 0 or 1.  As the trained methods write it: targets are smoothed by
    ``smoothing``, which is then added to the probability of the target once more.
    """
    target = torch.stack([1 - masks, masks], dim=1).clamp(smoothing, 1 - smoothing)
    hit = (target * probabilities).sum(dim=1) + smoothing
    return (-((1 - hit) ** gamma) * hit.log()).mean()


def dice(probability: Tensor, masks: Tensor, smoothing: float = 1.0) -> Tensor:
    """Return one minus the soft Dice overlap (no squares) of ``probability`` (B, H, W), mean over images."""
    shared = (probability * masks).flatten(1).sum(dim=1)
    size = probability.flatten(1).sum(dim=1) + masks.flatten(1).sum(dim=1)
    return 1 - ((2 * shared + smoothing) / (size + smoothing)).mean()


def two_way(difference: Tensor) -> Tensor:
    """Return the softmax (B, 2, ...) of two logits, of which ``difference`` (B, ...) is given.

    The difference is anomalous minus normal.
    """
    return torch.stack([(-difference).sigmoid(), difference.sigmoid()], dim=1)


def segmentation(probabilities: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the focal loss and the Dice losses of both channels, which are summed unweighted.

    ``probabilities`` (B, 2, H, W), normal first; ``masks`` (B, H, W), 1 where anomalous.
    """
    return {
        "focal": focal(probabilities, masks),
        "dice_normal": dice(probabilities[:, 0], 1 - masks),
        "dice_anomalous": dice(probabilities[:, 1], masks),
    }


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of named losses, each one number."""
    return torch.stack([*parts.values()]).sum()
