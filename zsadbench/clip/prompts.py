"""States x templates -> text anchors, encoded once and kept on disk.

Text features depend on the weights, the activation and the prompt alone, so they are cached under
the user's cache folder; a damaged or unwritable cache only costs time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from ..errors import MethodError, RecordError
from ..files import cache_dir, digest_of, stand_in, write_atomic
from ..images import in_pieces

if TYPE_CHECKING:
    from .towers import Clip

_AT_ONCE = 256, 32
"""Prompts that are encoded together: at most, and at least, as neighbours share what they begin with."""
_ARITHMETIC = 3
"""Part of what cached features are known by: sums in another order have other last bits."""

PROMPT_LISTS = ("normal", "anomalous", "templates")
"""The lists of a prompt file; the last one may be left out."""


def ensemble(
    states: Sequence[str], templates: Sequence[str], words: str, *, template_major: bool = False
) -> list[str]:
    """Return every template filled with every state filled with ``words``, state by state.

    ``template_major`` goes template by template instead; a mean over the prompts does not depend on it.

    Raises:
        MethodError: for a state or template that has not one place for words.
    """
    order = (
        ((s, t) for t in templates for s in states)
        if template_major
        else ((s, t) for s in states for t in templates)
    )
    return [filled(template, filled(state, words)) for state, template in order]


def filled(text: str, words: str) -> str:
    """Return a state or template with ``words`` in the place of its one ``{}``.

    Raises:
        MethodError: if the place is missing or not the only one, or there is another brace.
    """
    if not has_one_slot(text):
        raise MethodError(f"'{text}' needs {{}} once, where the words go, and no other brace")
    return text.replace("{}", words)


def encode(clip: Clip, prompts: Sequence[str]) -> Tensor:
    """Return text features (n, C) float32 of ``prompts``, un-normalised, on the CLIP's device.

    Raises:
        MethodError: if there is no prompt, or one exceeds the context.
    """
    if not prompts:
        raise MethodError("there is no prompt to encode; give at least one state and one template")
    clip.hear(prompts)
    unique = sorted(set(prompts))  # neighbours begin alike
    path = cache_dir() / "anchors" / f"{digest_of([_ARITHMETIC, clip.digest, unique])}.safetensors"
    features = _cached(path, (len(unique), clip.vision.proj.shape[-1]))
    if features is None:
        features = _encode(clip, unique)
        with suppress(RecordError):  # without a cache the text tower runs again next time
            write_atomic(path, save({"features": features.cpu().contiguous()}))
    rows = {prompt: row for row, prompt in enumerate(unique)}
    return features.to(clip.device)[[rows[prompt] for prompt in prompts]]


def _cached(path: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        features = load(path.read_bytes())["features"]
    except Exception:  # absent or damaged: encode again
        return None
    whole = features.dtype == torch.float32 and features.shape == shape and bool(features.isfinite().all())
    return features if whole else None


@torch.inference_mode()
def _encode(clip: Clip, prompts: Sequence[str]) -> Tensor:
    def walk(tokens: Tensor) -> Tensor:
        return clip.text.encode(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])

    return in_pieces(walk, clip.tokenize(prompts), *_AT_ONCE).float()


def anchor(clip: Clip, prompts: Sequence[str], *, normalise_prompts: bool = False) -> Tensor:
    """Return the unit text anchor (C,) of a prompt set: the mean of its features, normalised.

    ``normalise_prompts`` brings each prompt to unit length before the mean.
    """
    features = encode(clip, prompts)
    if normalise_prompts:
        features = F.normalize(features, dim=-1)
    return F.normalize(features.mean(dim=0), dim=0)


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a user's prompts: a TOML file with the lists ``normal``, ``anomalous`` and ``templates``.

    Raises:
        MethodError: naming the file and the key that is wrong.
    """
    keys = PROMPT_LISTS
    try:
        content = path.read_bytes()
        if other := stand_in(content[:512]):
            raise MethodError(f"{path}: {other}")
        table: dict[str, Any] = tomllib.loads(content.decode())
    except FileNotFoundError:
        raise MethodError(f"{path}: no such prompt file; it is a TOML file with the lists {keys}") from None
    except (OSError, ValueError) as error:
        raise MethodError(f"{path}: cannot be read as TOML ({error})") from None
    for key in table:
        if key not in keys:
            raise MethodError(f"{path}: unknown key '{key}'; allowed: {', '.join(keys)}")
    for key in keys[:2]:
        if key not in table:
            raise MethodError(f"{path}: the list '{key}' is missing")
    for key, value in table.items():
        if not (isinstance(value, list) and value and all(map(has_one_slot, value))):
            raise MethodError(
                f"{path}: '{key}' must be a list of texts, each with {{}} once, where the words go"
            )
    return {key: tuple(table[key]) for key in table}


def has_one_slot(text: object) -> bool:
    """Tell whether a state or template has one place for words and no other brace."""
    return isinstance(text, str) and text.count("{}") == 1 and not {*"{}"} & {*text.replace("{}", "")}
