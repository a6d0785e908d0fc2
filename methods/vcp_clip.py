"""VCP-CLIP (Qu et al., ECCV 2024, arXiv 2407.12276): prompts see the image, and texts ask its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Number, Part, Preprocess, Share, Sigma
from zsadbench.maps import smooth
from zsadbench.method import Evidence

from ._shared import as_grid, check_prepared
from .clip_ad import inner_layers, layer_maps, linear_features, linear_layers

PLACEHOLDER = "X"
PROMPT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class VcpClip:
    """Category vectors made from the image stand in two prompts; patches are compared with them twice.

    ``category_vectors`` take the object's place in ``template``; ``deep_length`` learned vectors stand
    behind the start token in every text block (``deep``).  Without ``global_context`` the category
    vectors are the same for every image.  After the blocks ``features`` (from 1) a linear layer brings
    the patches to the texts (pre), and an attention of ``heads`` heads brings the texts to the patches
    (post).  ``alpha`` is the weight of the first map; ``top_share`` of the pixels make the image score.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="gelu")
    preprocess: Preprocess = Preprocess(518, rgb="after")
    checkpoint: str = ""
    template: str = "a photo of a {}"
    normal: str = "good"
    anomalous: str = "damaged"
    category_vectors: Count = 2
    deep_length: Number = 1
    deep: bool = True
    global_context: bool = True
    features: tuple[Count, ...] = (6, 12, 18, 24)
    heads: Count = 8
    alpha: Share = 0.2
    top_share: Part = 2000 / 518**2
    image_score: Literal["top", "max"] = "top"
    sigma: Sigma = 8.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> VcpClipObserver:
        """Load what was learned and ask for the blocks' outputs; no category reaches the prompts.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "vcp-clip", checkpoint_shapes(self, clip))
        learned = {name: value.to(clip.device) for name, value in learned.items()}
        clip.vision.tap(stream=inner_layers(self, clip))
        return VcpClipObserver(self, clip, learned, frozenset(wordings))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return both probability maps, means over the layers, weighed by ``alpha``, then smoothed."""
        pre, post = (layer_maps(evidence[name], size).mean(dim=1) for name in ("pre", "post"))
        return smooth(self.alpha * pre + (1 - self.alpha) * post, self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the sum of both maps' top means, or the maximum of the final map."""
        return evidence["top"].sum(dim=1) if self.image_score == "top" else extrema[:, 1]


@dataclass(frozen=True)
class VcpClipObserver:
    """Evidence: ``pre`` and ``post`` (B, K, g, g), logits of K layers; ``top`` (B, 2), means of pixels."""

    method: VcpClip
    clip: Clip
    learned: Mapping[str, Tensor]
    categories: frozenset[str]

    def observe(self, batch: Batch) -> Evidence:
        """Make the texts of each image, then compare its patches with them in both spaces."""
        check_prepared(batch.categories, self.categories)
        vision = self.clip.vision
        trace, grid = vision.trace(batch), vision.grid(batch.images)
        patches = patch_tokens(self.method, self.clip, trace)
        image = vision.project(trace.output[:, 0]).float()
        texts = F.normalize(encode_texts(self.method, self.clip, self.learned, image), dim=-1)
        pre, post = differences(self.method, self.learned, patches, texts)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        found = {"pre": as_grid(pre, grid), "post": as_grid(post, grid)}
        top = [
            top_mean(layer_maps(grids, size).mean(dim=1), self.method.top_share) for grids in found.values()
        ]
        return {**found, "top": torch.stack(top, dim=1)}


def patch_tokens(method: VcpClip, clip: Clip, trace: Trace) -> list[Tensor]:
    """Return the patches (B, N, V) that leave each block of ``features``, in float32."""
    return [trace.after(layer)[:, 1:].float() for layer in method.features]


def differences(
    method: VcpClip, learned: Mapping[str, Tensor], patches: Sequence[Tensor], texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return anomalous minus normal logits (B, K, N) of ``patches`` in the texts' space and in their own."""
    pre, post = both_logits(method, learned, patches, texts)
    return pre[..., 1] - pre[..., 0], post[..., 1] - post[..., 0]


def both_logits(
    method: VcpClip, learned: Mapping[str, Tensor], patches: Sequence[Tensor], texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits (B, K, N, 2) against unit ``texts`` (B, 2, C), before and after they ask the patches."""
    layers = linear_layers({name: learned[name] for name in learned if name.startswith("fc.")}, texts.device)
    pre = [linear_features(tokens, own) @ texts.mT for tokens, own in zip(patches, layers, strict=True)]
    unit = [F.normalize(tokens, dim=-1) for tokens in patches]
    post = [tokens @ asked(method, learned, tokens, texts).mT for tokens in unit]
    return (
        learned["prompt_temp"].exp() * torch.stack(pre, dim=1),
        learned["prompt_temp_l1"].exp() * torch.stack(post, dim=1),
    )


def asked(method: VcpClip, learned: Mapping[str, Tensor], unit: Tensor, texts: Tensor) -> Tensor:
    """Return the texts' answers (B, 2, V), of unit length, from unit patches (B, N, V); no scaling.

    Keys and values are never made for every patch: a query is brought to the patches' space, and the
    weighted mean of the patches to the values'.  The bias of the keys cancels in the softmax.
    """
    heads = method.heads
    query = torch.unflatten(_linear(learned, "q_proj_pre", texts), -1, (heads, -1))  # (B, 2, h, d)
    keys = torch.unflatten(learned["k_proj_pre_1.weight"][..., 0], 0, (heads, -1))  # (h, d, V)
    values = torch.unflatten(learned["v_proj_pre_1.weight"][..., 0], 0, (heads, -1))
    weights = (torch.einsum("bthd,hdv->bthv", query, keys) @ unit[:, None].mT).softmax(dim=-1)
    pooled = torch.einsum("bthv,hdv->bthd", weights @ unit[:, None], values)
    answer = pooled.flatten(2) + learned["v_proj_pre_1.bias"]
    return F.normalize(_linear(learned, "proj_post_t", answer), dim=-1)


def _linear(learned: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Apply a layer that the authors write as a convolution of width 1."""
    return F.linear(x, learned[f"{name}.weight"][..., 0], learned[f"{name}.bias"])


def category_vectors(method: VcpClip, learned: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """Return the vectors (B, r, W) that stand for the object: a query plus what a sliding window sees.

    ``image`` (B, C) is the un-normalised image embedding; the window slides over its channels.
    """
    if not method.global_context:
        return learned["prompt_query"].expand(len(image), -1, -1)
    kernel, bias = learned["prompt_linear1.fc.weight"], learned["prompt_linear1.fc.bias"]
    return learned["prompt_query"] + F.conv1d(image[:, None], kernel, bias, padding=1)


def encode_texts(
    method: VcpClip,
    clip: Clip,
    learned: Mapping[str, Tensor],
    image: Tensor,
    keep: Tensor | None = None,
) -> Tensor:
    """Return the texts (B, 2, C) of each image's embedding ``image`` (B, C), un-normalised.

    Deep vectors are inserted behind the start token, moving the rest with its positions, overwritten
    before every block but the first, and cut out at the end.  ``keep`` (blocks, B * 2, n, W) multiplies
    them, as dropout does in training.  Gradients reach ``learned``.
    """
    text, tokens = clip.text, prompt_tokens(method, clip)
    end, count = int(tokens[0].argmax()), method.category_vectors
    places = text.module.positional_embedding[end - count : end]
    vectors = (category_vectors(method, learned, image) + places)[:, None].expand(-1, 2, -1, -1)
    words = text.embed(tokens).expand(len(image), -1, -1, -1)
    x = torch.cat([words[:, :, : end - count], vectors, words[:, :, end:]], dim=2).flatten(0, 1)
    n = method.deep_length if method.deep else 0
    deep = deep_vectors(method, learned, len(x), keep)
    x = torch.cat([x[:, :1], *(one for one in deep[:1]), x[:, 1:]], dim=1)
    for number, block in enumerate(text.blocks):
        if n and number:
            x = torch.cat([x[:, :1], deep[number], x[:, 1 + n :]], dim=1)
        x = block(x)
    if n:
        x = torch.cat([x[:, :1], x[:, 1 + n :]], dim=1)
        norm = (learned["prompt_norm.weight"], learned["prompt_norm.bias"])
        x = F.layer_norm(x, (text.width,), *norm, eps=PROMPT_NORM_EPS)
    return torch.unflatten(text.pool(x, tokens.repeat(len(image), 1)), 0, (len(image), 2))


def deep_vectors(
    method: VcpClip, learned: Mapping[str, Tensor], sentences: int, keep: Tensor | None
) -> list[Tensor]:
    """Return for each text block its deep vectors (sentences, n, W); none where they are off."""
    if not method.deep:
        return []
    rows = torch.cat([learned["prompt_embeddings"], learned["deep_prompt_embeddings"]])
    projected = F.linear(rows, learned["prompt_proj.weight"], learned["prompt_proj.bias"])
    every = projected[:, None].expand(-1, sentences, -1, -1)
    return list(every if keep is None else every * keep)


def prompt_tokens(method: VcpClip, clip: Clip) -> Tensor:
    """Return the token ids (2, L) of both prompts, placeholders where the category vectors go."""
    blank = " ".join([PLACEHOLDER] * method.category_vectors)
    return clip.tokenize(
        [method.template.replace("{}", f"{s} {blank}") for s in (method.normal, method.anomalous)]
    )


def top_mean(maps: Tensor, share: float) -> Tensor:
    """Return the mean (B,) of the greatest ``share`` of the pixels of ``maps`` (B, H, W)."""
    pixels = maps.flatten(1)
    return pixels.topk(min(max(1, round(share * pixels.shape[1])), pixels.shape[1]), dim=1).values.mean(dim=1)


def checkpoint_shapes(method: VcpClip, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter, named as in the authors' files."""
    (wide, joint), width, blocks = clip.vision.proj.shape, clip.text.width, len(clip.text.blocks)
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(len(method.features)):
        shapes |= {f"fc.{number}.weight": (joint, wide), f"fc.{number}.bias": (joint,)}
    r, n = method.category_vectors, method.deep_length
    shapes |= {"prompt_query": (1, r, width), "prompt_temp": (), "prompt_temp_l1": ()}
    shapes |= {"prompt_linear1.fc.weight": (r, 1, 3), "prompt_linear1.fc.bias": (r,)}
    for name in ("q_proj_pre", "k_proj_pre_1", "v_proj_pre_1", "proj_post_t"):
        inputs = joint if name == "q_proj_pre" else wide
        shapes |= {f"{name}.weight": (wide, inputs, 1), f"{name}.bias": (wide,)}
    if method.deep:
        shapes |= {"prompt_embeddings": (1, n, width), "deep_prompt_embeddings": (blocks - 1, n, width)}
        shapes |= {"prompt_proj.weight": (width, width), "prompt_proj.bias": (width,)}
        shapes |= {"prompt_norm.weight": (width,), "prompt_norm.bias": (width,)}
    return shapes


def check_fit(method: VcpClip, clip: Clip) -> None:
    """Refuse layers, heads, widths and prompts that do not fit."""
    depth, (wide, joint) = len(clip.vision.blocks), clip.vision.proj.shape
    if not method.features or not all(1 <= layer <= depth for layer in method.features):
        raise MethodError(
            f"features={','.join(map(str, method.features))}: the backbone has blocks 1 to {depth}"
        )
    if method.heads < 1 or wide % method.heads:
        raise MethodError(f"{method.heads} heads do not divide the image tower's width {wide}")
    if method.global_context and joint != clip.text.width:
        raise MethodError(
            f"the image embedding has {joint} numbers, the text tower's words {clip.text.width}: it cannot "
            "stand among them; choose another backbone, or --set global_context=false"
        )
    if method.deep and method.deep_length < 1:
        raise MethodError("deep_length must be 1 or more, or deep=false")
    if method.template.count("{}") != 1:
        raise MethodError("the template needs {} once, where state and category vectors go")
    tokens = prompt_tokens(method, clip)
    ends = tokens.argmax(dim=1)
    if int(ends[0]) != int(ends[1]):
        raise MethodError(f"'{method.normal}' and '{method.anomalous}' must be of equally many tokens")
    if tokens.shape[1] + method.deep_length > clip.text.context:
        raise MethodError(f"prompts and deep vectors exceed the text tower's {clip.text.context} positions")
