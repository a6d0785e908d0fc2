"""A second frozen image tower beside CLIP's: DINOv2 (Oquab et al., 2023, arXiv 2304.07193) as timm builds it.

Its weights are named, loaded, hashed and recorded as CLIP's are: timm's tag, a local file in timm's form or
in that of the authors' hub, or deterministic noise.  No file is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError, suggest
from ..files import sha256_of
from ..inputs import SecondTower, second_towers
from .archives import read_state, room_for, sound
from .checkpoints import compare_shapes
from .downloads import obtain
from .random import random_second
from .weights import DAMAGED, is_file, weight_file

SECOND_MINIATURE = "tiny-dinov2-reg4"
"""Three blocks of width 64 for 84 pixels: for trials and tests, with random weights only."""

_MINIATURES: dict[str, tuple[str, dict[str, Any]]] = {
    SECOND_MINIATURE: (
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 84, "embed_dim": 64, "depth": 3, "num_heads": 2},
    )
}


@dataclass(frozen=True)
class SecondWeights:
    """Where a second tower's tensors come from; ``source`` and ``digest`` as in `Weights`."""

    name: str
    source: Path | str
    tag: str
    digest: str

    def described(self) -> dict[str, str]:
        """Return what a record keeps."""
        source = self.source if isinstance(self.source, str) else Path(self.tag).name
        return {"name": self.name, "weights": source, "sha256": self.digest}


class Second:
    """A loaded second tower.  ``patch`` is the side of its patches in pixels."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.patch: int = model.patch_embed.patch_size[0]
        self._colour = [torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std")]

    def normalise(self, images: Tensor) -> Tensor:
        """Return ``images`` (B, 3, H, W) with values in [0, 1] as the tower wants them, float32."""
        mean, std = (value.to(images.device) for value in self._colour)
        return (images.float() - mean) / std

    def patches(self, images: Tensor) -> Tensor:
        """Return the patch tokens (B, N, W) after the last norm of normalised ``images`` (B, 3, H, W).

        Positions are resized to the grid, bicubic and antialiased; class and register tokens are left out.
        """
        kind = self.model.patch_embed.proj.weight.dtype
        with torch.backends.cudnn.flags(allow_tf32=False):  # float32 means float32, as in CLIP's tower
            tokens: Tensor = self.model.forward_features(images.to(kind))
        return tokens[:, self.model.num_prefix_tokens :]


def find_seconds(method: Any) -> dict[str, SecondWeights]:
    """Return the weights of every second tower of ``method``, by the names of its fields.

    Raises:
        WeightsError: if they cannot be had.
    """
    return {field: find_second(tower, field) for field, tower in second_towers(method).items()}


def find_second(tower: SecondTower, field: str = "second tower") -> SecondWeights:
    """Resolve ``tower.weights``: ``random[:SEED]``, a file, or one of timm's tags.

    ``field`` is the method's parameter that names the tower.

    Raises:
        WeightsError: for an unknown tower or tag, a missing file, or a tag that cannot be downloaded.
    """
    name, tag = tower.name, tower.weights
    known = _tags(name)
    kind, _, seed = tag.partition(":")
    source: Path | str
    if kind == "random":
        if seed and not seed.isdigit():
            raise WeightsError(
                f"weights '{tag}': the seed of random weights is a whole number, as in random:3"
            )
        number = int(seed or 0)
        return SecondWeights(name, f"random:{number}", tag, f"random/{name}/{number}")
    if is_file(tag):
        source = weight_file(tag)
    elif tag in known:
        source = obtain(_published(name, tag), f"{name}.{tag}", f"--set {field}_weights=FILE")
    else:
        raise WeightsError(
            f"no weights '{tag}' are published for '{name}'.{suggest(tag, [*known, 'random'])}"
        )
    return SecondWeights(name, source, tag, sha256_of(source))


@torch.inference_mode(False)  # as for CLIP: parameters fit for a graph, whatever the caller's mode
def load_second(
    tower: SecondTower, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Second:
    """Build the tower with its weights, in evaluation mode.

    Raises:
        WeightsError: if the weights cannot be had or are those of another architecture.
    """
    weights = find_second(tower)
    with torch.device("meta"):  # no initialisation is computed only to be overwritten
        model = _build(tower.name)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if isinstance(weights.source, str):
        noise = random_second(tower.name, _hub_shapes(wanted), int(weights.source.partition(":")[2]))
        tensors = timm_form(noise)
    else:
        tensors = timm_form(read_state(weights.source, room_for(wanted.values())))
    if differences := compare_shapes({key: tuple(value.shape) for key, value in tensors.items()}, wanted):
        raise WeightsError(
            f"{weights.source}: weights of another architecture than '{tower.name}': {differences}; name the "
            "tower they belong to"
        )
    whole = {key: sound(weights.source, key, tensors[key], DAMAGED) for key in wanted}
    model.load_state_dict(whole, strict=True, assign=True)
    model.requires_grad_(False).eval().to(device, dtype)
    return Second(model)


def timm_form(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict by timm's names; one of the authors' hub is renamed.

    With registers timm adds no position to the class token, so the hub's is added once and for all.
    """
    state = {key: value for key, value in state.items() if key != "mask_token"}
    if "register_tokens" in state:
        positions = state.pop("pos_embed")
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state


def _hub_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the hub's names have, of which noise is made."""
    hub = dict(shapes)
    if registers := hub.pop("reg_token", None):
        one, places, width = hub["pos_embed"]
        hub |= {"register_tokens": registers, "pos_embed": (one, places + 1, width)}
    return hub


def _build(name: str) -> Any:
    import timm

    model, sizes = _MINIATURES.get(name, (name, {}))
    return timm.create_model(model, pretrained=False, num_classes=0, dynamic_img_size=True, **sizes)


def _tags(name: str) -> list[str]:
    """Return the tags that timm publishes for a tower.

    Raises:
        WeightsError: if it is none of timm's DINOv2.
    """
    import timm

    if name in _MINIATURES:
        return []
    towers = timm.list_models("vit_*_dinov2")
    if name not in towers:
        raise WeightsError(f"unknown second tower '{name}'.{suggest(name, [*towers, *_MINIATURES])}")
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]


def _published(name: str, tag: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(f"{name}.{tag}")
    hub = found.hf_hub_id if found else None
    return {"hub": f"{hub}/model.safetensors" if hub else "", "url": (found.url if found else "") or ""}
