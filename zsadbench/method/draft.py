"""Files to start from: a method that keeps the contract as it stands with its card, and a prompt file."""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from typing import Any

from ..clip import PROMPT_LISTS, has_one_slot
from ..errors import UsageError
from ..files import write_atomic
from .card import method_cards
from .registry import Resolved
from .settings import places

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


def draft_method(name: str, folder: Path, *, force: bool = False) -> tuple[Path, Path, str]:
    """Write a new method ``name`` into ``folder``: ``name.py`` and its card.

    Returns both files and the name of the class.

    Raises:
        UsageError: for a name that no method can have, one that is taken, or a file that exists (unless
            ``force``).
        RecordError: if a file cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(f"'{name}' is no name for a method; use small letters and digits, joined by hyphens")
    if name in method_cards():
        raise UsageError(f"a method '{name}' comes with the toolkit; choose another name")
    module = name.replace("-", "_")
    cls = "".join(part.capitalize() for part in module.split("_"))
    files = {folder / f"{module}.py": _SOURCE, folder / f"{name}.toml": _CARD}
    for path in files:
        if path.exists() and not force:
            raise UsageError(
                f"{path}: exists already; choose another name or folder, or replace it with --force"
            )
    for path, text in files.items():
        filled = text.replace("@NAME@", name).replace("@MODULE@", module).replace("@CLASS@", cls)
        write_atomic(path, filled.encode())
    source, card = files
    return source, card, cls


def draft_prompts(resolved: Resolved) -> str:
    """Return a prompt file (TOML) with the lists of a method, to be changed and given back by ``--prompts``.

    Raises:
        UsageError: for a method whose prompts are learned, or name no object.
    """
    method: Any = resolved.method
    lists = {name: getattr(method, name, None) for name in PROMPT_LISTS}
    if not (_usable(lists["normal"]) and _usable(lists["anomalous"])):
        raise UsageError(f"'{resolved.id}' takes no prompt file: its prompts are learned, or name no object")
    parts = [_PROMPTS.replace("@NAME@", resolved.id)]
    if special := [name for name in places(method) if name.endswith("_templates")]:
        parts[0] += (
            f"# The list `templates` also takes the place of the method's own {' and '.join(special)}.\n"
        )
    for name, texts in lists.items():
        if texts and _usable(texts):
            entries = "".join(f"    {json.dumps(text, ensure_ascii=False)},\n" for text in texts)
            parts.append(f"{name} = [\n{entries}]\n")
    return "\n".join(parts)


def _usable(texts: object) -> bool:
    return isinstance(texts, tuple) and bool(texts) and all(map(has_one_slot, texts))


_PROMPTS = """\
# Prompts of @NAME@. Every state of `normal` and `anomalous` is put into every template. {} stands once in
# each text: in a state for the words of the category, in a template for the state. Change them, then:
# zsad run --method @NAME@ --prompts THIS_FILE ...
"""

_SOURCE = '''"""@CLASS@: say in one sentence what it does, and cite the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, anchor, ensemble
from zsadbench.errors import MethodError
from zsadbench.maps import render
from zsadbench.method import Backbone, Batch, Evidence, Preprocess


@dataclass(frozen=True)
class @CLASS@:
    """Patch tokens of the last block against two texts: replace it by what your method does.

    The fields are its parameters, all of them numbers, texts or tuples: `--set sigma=2` changes one, and the
    record keeps them.
    """

    map_parameters: ClassVar[tuple[str, ...]] = ("sigma",)  # those that only `maps` reads

    backbone: Backbone = Backbone("ViT-L-14-336", "openai")
    preprocess: Preprocess = Preprocess(518)
    normal: tuple[str, ...] = ("{}", "flawless {}")
    anomalous: tuple[str, ...] = ("damaged {}", "{} with a defect")
    templates: tuple[str, ...] = ("a photo of a {}.", "a close-up photo of the {}.")
    temperature: float = 0.01
    sigma: float = 4.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> Observer:
        """Encode the texts of each category once: here is the place for whatever needs no image."""
        table = {
            category: torch.stack(
                [
                    anchor(clip, ensemble(states, self.templates, words))
                    for states in (self.normal, self.anomalous)
                ]
            )
            for category, words in wordings.items()
        }
        return Observer(self, clip, table)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return anomaly maps (B, H, W) from stored evidence; needs no weights."""
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return image scores (B,); `extrema` (B, 2) are the lowest and highest value of each map."""
        return evidence["score"]


@dataclass(frozen=True)
class Observer:
    """Turns images into evidence: small float32 tensors on the patch grid, one row per image."""

    method: @CLASS@
    clip: Clip
    anchors: Mapping[str, Tensor]

    def observe(self, batch: Batch) -> Evidence:
        """Compare the class token and the patch tokens of each image with the texts of its category."""
        vision = self.clip.vision
        tokens = vision.project(vision.trace(batch).output)  # (B, 1 + N, C), class token first
        unit = F.normalize(tokens.float(), dim=-1)
        logits = unit @ self.texts(batch).mT / self.method.temperature
        p = logits.softmax(dim=-1)[..., 1]
        return {"score": p[:, 0], "map": p[:, 1:].unflatten(1, vision.grid(batch.images))}

    def texts(self, batch: Batch) -> Tensor:
        """Return the two text features (B, 2, C) of each image's category."""
        for category in batch.categories:
            if category not in self.anchors:
                raise MethodError(f"category '{category}' was not prepared")
        return torch.stack([self.anchors[category] for category in batch.categories])
'''

_CARD = """\
# With this card the method is one of the toolkit's: put both files into methods/, nothing else has to
# be edited. Until then @MODULE@.py:@CLASS@ runs without it. Every key: docs/method-cards.md
format = 1
id = "@NAME@"
title = "@CLASS@"
version = 1                        # a change of meaning is a new version
entry = "@MODULE@:@CLASS@"
backbone = "ViT-L-14-336/openai"   # repeats the class's own
size = 518
paper = ""
code = ""                          # the authors' code with its commit: "owner/name@0123abcd"
trained = false
transductive = false
order_dependent = false
map_parameters = ["sigma"]         # fields that only maps() reads
wording = "words"                  # how categories are worded: key, spaced or words
deviations = []

[protocol]
size = "frame"                     # where the reference evaluates: the network's input, or a number of pixels
mask_resize = "bilinear50"

[scaling]
lengths = ["sigma"]                # pixels that follow another input size
"""
