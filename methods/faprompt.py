"""FAPrompt (Zhu et al., ICCV 2025, arXiv 2410.10289): ten prompts for abnormality that see patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Number, Positive, Preprocess, Sigma, Weight
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import Anchors, anomaly_probability, as_grid, check_prepared, encode_per_image
from .anomalyclip import AnomalyClip, AnomalyClipObserver, reading

SHARED, OWN = "N", "A"
"""Placeholders of the learned vectors in the prompts."""


@dataclass(frozen=True)
class FaPrompt:
    """Learned prompts without a category, against AnomalyCLIP's value-value stream, in two passes.

    ``shared`` learned vectors stand before ``normal_words`` and before ``anomalous_words``, which ``prompts``
    times have ``own`` vectors more.  In the second pass a network adds to the latter what it sees in
    ``patches`` patches: the ``first`` of the grid, as the authors' code does, or the most anomalous
    (``top``), or nothing (``none``).  ``first_weight`` and ``second_weight`` weigh the passes' greatest
    patch in the image score.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="quick_gelu", position="bilinear")
    preprocess: Preprocess = Preprocess(518, rgb="after")
    checkpoint: str = ""
    normal_words: str = "object"
    anomalous_words: str = "damaged object"
    shared: Number = 5
    own: Number = 2
    prompts: Count = 10
    patches: Count = 10
    selection: Literal["first", "top", "none"] = "first"
    deep_prompts: Number = 8
    deep_length: Number = 4
    half_prompts: bool = True
    value_stream: bool = True
    value_from: Number = 6
    class_norm: bool = False
    temperature: Positive = 0.07
    first_weight: Weight = 2.0
    second_weight: Weight = 1.0
    sigma: Sigma = 10.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> FaPromptObserver:
        """Encode the first pass, the same for all images, and ask for the value-value attention.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "faprompt", checkpoint_shapes(self, clip))
        learned = {name: value.to(clip.device) for name, value in learned.items()}
        with torch.no_grad():
            normal, anomalous = first_pass(self, clip, learned)
        plain = reader(self, clip)
        clip.vision.tap(**reading(plain.method, clip)[2])
        return FaPromptObserver(self, clip, learned, texts_of(normal, anomalous), plain, frozenset(wordings))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the mean of both passes' probability grids, bilinear at ``size``, then smoothed."""
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the mean of the image's probability and of the passes' greatest patches."""
        return evidence["score"]


@dataclass(frozen=True)
class FaPromptObserver:
    """Evidence: ``map`` (B, g, g), the mean of both passes, and ``score`` (B,), probabilities.

    ``texts`` (2, C) are those of the first pass; ``plain`` reads features as AnomalyCLIP does.
    """

    method: FaPrompt
    clip: Clip
    learned: Mapping[str, Tensor]
    texts: Tensor
    plain: AnomalyClipObserver
    categories: frozenset[str]

    def observe(self, batch: Batch) -> Evidence:
        """Compare the patches with the texts, make the texts anew for each image, and compare again."""
        check_prepared(batch.categories, self.categories)
        image, patches = features(self.plain, self.clip.vision.trace(batch))
        first = self.texts.expand(len(image), -1, -1)
        second = second_pass(
            self.method, self.clip, self.learned, prior(self.method, self.learned, patches, first)
        )
        second = torch.stack([first[:, 0], F.normalize(second.mean(dim=1), dim=-1)], dim=1)
        p1, p2 = (probability(self.method, patches, texts) for texts in (first, second))
        score = image_score(self.method, probability(self.method, image, second), p1, p2)
        return {"score": score, "map": as_grid((p1 + p2) / 2, self.clip.vision.grid(batch.images))}


def reader(method: FaPrompt, clip: Clip) -> AnomalyClipObserver:
    """Return what reads class feature and local tokens: AnomalyCLIP's observer, at the last block."""
    plain = AnomalyClip(
        method.backbone,
        method.preprocess,
        features=(len(clip.vision.blocks),),
        value_stream=method.value_stream,
        value_from=method.value_from,
        class_norm=method.class_norm,
    )
    layers, first, _ = reading(plain, clip)
    return AnomalyClipObserver(plain, clip, Anchors({}), layers, first)


def features(plain: AnomalyClipObserver, trace: Trace) -> tuple[Tensor, Tensor]:
    """Return the class feature (B, C) and the patch features (B, N, C), float32 and un-normalised."""
    (layer,) = plain.layers
    return plain.class_feature(trace).float(), plain.local_tokens(trace)[layer][:, 1:].float()


def probability(method: FaPrompt, found: Tensor, texts: Tensor) -> Tensor:
    """Return the anomaly probability (B, ...) of features (B, ..., C) against ``texts`` (B, 2, C)."""
    return anomaly_probability(found, texts, 1 / method.temperature)


def image_score(method: FaPrompt, image: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Return the score (B,) from the image's probability (B,) and those of its patches (B, N), twice."""
    first, second = method.first_weight, method.second_weight
    greatest = (first * p1.amax(dim=1) + second * p2.amax(dim=1)) / (first + second)
    return (image + greatest) / 2


def prior(method: FaPrompt, learned: Mapping[str, Tensor], patches: Tensor, texts: Tensor) -> Tensor:
    """Return what is added to the own vectors, (B, W), from patch features (B, N, C)."""
    unit = F.normalize(patches, dim=-1)
    if method.selection == "none":
        return unit.new_zeros(len(unit), learned["patch_meta_net.linear2.bias"].shape[0])
    if unit.shape[1] < method.patches:
        raise MethodError(
            f"{unit.shape[1]} patches are fewer than the {method.patches} that the prompts see; choose a "
            "larger --set size=..."
        )
    chosen = unit[:, : method.patches]
    if method.selection == "top":
        difference = unit @ (texts[:, 1] - texts[:, 0])[..., None]
        order = difference[..., 0].topk(method.patches, dim=1).indices
        chosen = unit.gather(1, order[..., None].expand(-1, -1, unit.shape[-1]))
    hidden = F.relu(_linear(learned, "linear1", chosen.flatten(1)))
    return _linear(learned, "linear2", hidden)


def _linear(learned: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, learned[f"patch_meta_net.{name}.weight"], learned[f"patch_meta_net.{name}.bias"])


def texts_of(normal: Tensor, anomalous: Tensor) -> Tensor:
    """Return unit texts (2, C): the normal one, and the mean of the raw abnormality features (K, C)."""
    return F.normalize(torch.stack([normal, anomalous.mean(dim=0)]), dim=-1)


def first_pass(method: FaPrompt, clip: Clip, learned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the raw features of the normal prompt (C,) and of the abnormality prompts (K, C)."""
    normal, anomalous = embedded(method, clip, learned)
    tokens = sentences(method, clip)
    x = torch.cat([normal, anomalous])[None]
    found = encode_per_image(clip.text, x, tokens, deep(method, learned), half=method.half_prompts)[0]
    return found[0], found[1:]


def second_pass(method: FaPrompt, clip: Clip, learned: Mapping[str, Tensor], bias: Tensor) -> Tensor:
    """Return the raw abnormality features (B, K, C) with ``bias`` (B, W) on every own vector."""
    _, anomalous = embedded(method, clip, learned)
    begin, end = 1 + method.shared, 1 + method.shared + method.own
    place = torch.zeros(anomalous.shape[1], 1, device=anomalous.device)
    place[begin:end] = 1
    x = anomalous + place * bias[:, None, None]
    tokens = sentences(method, clip)[1:]
    return encode_per_image(clip.text, x, tokens, deep(method, learned), half=method.half_prompts)


def embedded(method: FaPrompt, clip: Clip, learned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the normal sentence (1, L, W) and the abnormality sentences (K, L, W), vectors in place."""
    words = clip.text.embed(sentences(method, clip))
    positions = clip.text.module.positional_embedding
    shared = learned["ctx_pos"][0, :, : method.shared]
    own = learned["ctx_neg"][0]
    both = torch.cat([shared.expand(method.prompts, -1, -1), own], dim=1)

    def placed(sentence: Tensor, vectors: Tensor) -> Tensor:
        end = 1 + vectors.shape[1]
        return torch.cat([sentence[:, :1], vectors + positions[1:end], sentence[:, end:]], dim=1)

    return placed(words[:1], shared), placed(words[1:], both)


def deep(method: FaPrompt, learned: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Return the deep prompts (1, M, W) by the text block (from 0) they go before."""
    return {
        number + 1: learned[f"compound_prompts_text.{number}"][None] for number in range(method.deep_prompts)
    }


def prompt_texts(method: FaPrompt) -> list[str]:
    """Return the normal and the abnormality prompt, placeholders where the learned vectors go."""
    shared, own = [SHARED] * method.shared, [OWN] * method.own
    return [
        " ".join([*shared, f"{method.normal_words}."]),
        " ".join([*shared, *own, f"{method.anomalous_words}."]),
    ]


def sentences(method: FaPrompt, clip: Clip) -> Tensor:
    """Return the token ids (1 + K, L): the normal prompt, then the abnormality prompt K times."""
    normal, anomalous = clip.tokenize(prompt_texts(method))
    return torch.stack([normal, *[anomalous] * method.prompts])


def checkpoint_shapes(method: FaPrompt, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter, named as in the authors' files."""
    width, joint = clip.text.width, clip.vision.proj.shape[1]
    inputs = method.patches * joint
    hidden = inputs // 16
    return {
        "ctx_pos": (1, 1, method.shared, width),
        "ctx_neg": (1, method.prompts, method.own, width),
        **{f"compound_prompts_text.{i}": (method.deep_length, width) for i in range(method.deep_prompts)},
        "patch_meta_net.linear1.weight": (hidden, inputs),
        "patch_meta_net.linear1.bias": (hidden,),
        "patch_meta_net.linear2.weight": (width, hidden),
        "patch_meta_net.linear2.bias": (width,),
    }


def check_fit(method: FaPrompt, clip: Clip) -> None:
    """Refuse blocks and prompt lengths that the towers do not have."""
    depth, text_depth = len(clip.vision.blocks), len(clip.text.blocks)
    if not 1 <= method.value_from <= depth:
        raise MethodError(f"value_from={method.value_from} is not among {depth} image blocks")
    if not 0 <= method.deep_prompts < text_depth or not 0 <= method.deep_length <= method.shared:
        raise MethodError(
            f"{method.deep_prompts} deep prompts of {method.deep_length} vectors do not fit a text tower of "
            f"{text_depth} blocks and {method.shared} shared vectors"
        )
    if min(method.shared, method.own, method.prompts, method.patches) < 1:
        raise MethodError("shared, own, prompts and patches must be 1 or more")
    if method.first_weight < 0 or method.second_weight < 0 or not method.first_weight + method.second_weight:
        raise MethodError("first_weight and second_weight must not be negative, nor both zero")
