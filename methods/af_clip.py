"""AF-CLIP (Fang et al., ACM Multimedia 2025, arXiv 2507.19949): one adaptor for neighbourhoods of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Positive, Preprocess, Sigma
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import Anchors, as_grid

INNER = 512
"""Width inside the adaptor's attention."""
ATTENTION = "adaptor.attention.attn."
NORM = "adaptor.attention.norm."


@dataclass(frozen=True)
class AfClip:
    """Two texts that name no object, against tokens of several blocks and neighbourhoods, adapted alike.

    What leaves the blocks ``features`` (from 1) is used once for each of ``neighbourhoods``: every patch
    becomes the weighted sum of so many rows and columns around it, by a Gaussian of ``kernel_sigma``
    patches.  A learned attention of ``heads`` heads adapts each set; the similarities of all sets, over
    ``temperature``, are summed before one softmax.  ``prompt_length`` learned vectors stand before the
    start token of both texts.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="quick_gelu", position="bilinear")
    preprocess: Preprocess = Preprocess(518)
    checkpoint: str = ""
    normal: str = "without defect."
    anomalous: str = "with defect."
    prompt_length: Count = 12
    features: tuple[Count, ...] = (6, 12, 18, 24)
    neighbourhoods: tuple[Count, ...] = (1, 3, 5)
    kernel_sigma: Positive = 4.0
    heads: Count = 8
    temperature: Positive = 0.07
    sigma: Sigma = 4.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AfClipObserver:
        """Encode both texts once for all categories and ask for the blocks' outputs.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "af-clip", checkpoint_shapes(self, clip))
        learned = {name: value.to(clip.device) for name, value in learned.items()}
        with torch.no_grad():
            texts = F.normalize(encode_texts(self, clip, learned), dim=-1)
        clip.vision.tap(**taps(self, clip))
        return AfClipObserver(self, clip, learned, Anchors(dict.fromkeys(wordings, texts)))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the probability grid, bilinear at ``size``, then smoothed."""
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the class token; the map takes no part."""
        return evidence["score"]


@dataclass(frozen=True)
class AfClipObserver:
    """Evidence: ``map`` (B, gh, gw) and ``score`` (B,), both probabilities."""

    method: AfClip
    clip: Clip
    learned: Mapping[str, Tensor]
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Adapt every token set and compare all of them with both texts."""
        vision = self.clip.vision
        texts, grid = self.anchors.of(batch.categories), vision.grid(batch.images)
        tokens = token_sets(self.method, self.clip, vision.trace(batch), grid)
        features = adapted(self.method, self.clip, self.learned, tokens)
        p = torch.sigmoid(difference(self.method, features, texts))
        return {"score": p[:, 0], "map": as_grid(p[:, 1:], grid)}


def taps(method: AfClip, clip: Clip) -> dict[str, set[int]]:
    """Return what a trace must keep: a block's output enters the next one, the last one's is kept anyway."""
    return {"stream": {*method.features} - {len(clip.vision.blocks)}}


def token_sets(method: AfClip, clip: Clip, trace: Trace, grid: tuple[int, int]) -> Tensor:
    """Return the token sets (sets, B, 1+N, W) in float32, block by block, neighbourhoods inside."""
    outputs = [trace.after(layer) for layer in method.features]
    return torch.stack(
        [
            aggregated(tokens.float(), grid, side, method.kernel_sigma)
            for tokens in outputs
            for side in method.neighbourhoods
        ]
    )


def aggregated(tokens: Tensor, grid: tuple[int, int], side: int, sigma: float) -> Tensor:
    """Return ``tokens`` (B, 1+N, W) with each patch the weighted sum of its ``side`` x ``side`` neighbours.

    The weights are a Gaussian of ``sigma`` patches that sums to one; outside the picture there are zeros.
    The class token stays as it is.
    """
    if side == 1:
        return tokens
    steps = torch.arange(side, device=tokens.device, dtype=tokens.dtype) - side // 2
    line = torch.exp(-(steps**2) / (2 * sigma**2))
    line = line / line.sum()
    picture = torch.unflatten(tokens[:, 1:].mT, -1, grid).flatten(0, 1)[:, None]  # (B * W, 1, gh, gw)
    rows = F.conv2d(picture, line[None, None, :, None], padding=(side // 2, 0))
    summed = F.conv2d(rows, line[None, None, None, :], padding=(0, side // 2))
    patches = torch.unflatten(summed[:, 0], 0, (tokens.shape[0], -1)).flatten(2).mT
    return torch.cat([tokens[:, :1], patches], dim=1)


def adapted(method: AfClip, clip: Clip, learned: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Return ``tokens`` (sets, B, T, W) adapted and projected (sets, B, T, C), un-normalised.

    The attention's output replaces the tokens: no residual.  Gradients reach ``learned``.
    """
    replaced = attention(method, learned, tokens.flatten(0, 1))
    projected: Tensor = (
        F.layer_norm(
            replaced,
            (clip.vision.width,),
            clip.vision.ln_post.weight.float(),
            clip.vision.ln_post.bias.float(),
            clip.vision.ln_post.eps,
        )
        @ clip.vision.proj.float()
    )
    return torch.unflatten(projected, 0, tokens.shape[:2])


def attention(method: AfClip, learned: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Return the learned self-attention of ``tokens`` (n, T, W): every token of an image sees all others."""
    width = tokens.shape[-1]
    normed = F.layer_norm(tokens, (width,), learned[NORM + "weight"], learned[NORM + "bias"])
    packed = torch.cat([learned[f"{ATTENTION}to_{name}.weight"] for name in "qkv"])
    q, k, v = torch.unflatten(normed @ packed.T, -1, (3, method.heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(mixed, learned[ATTENTION + "to_out.0.weight"], learned[ATTENTION + "to_out.0.bias"])


def difference(method: AfClip, features: Tensor, texts: Tensor) -> Tensor:
    """Return the abnormal minus the normal logit (B, T) of ``features`` (sets, B, T, C), over all sets.

    ``texts`` are unit features, (2, C) or (B, 2, C).
    """
    cosines = F.normalize(features, dim=-1) @ (texts[..., 1, :] - texts[..., 0, :])[..., None]
    return cosines[..., 0].sum(dim=0) / method.temperature


def checkpoint_shapes(method: AfClip, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter, named as in the authors' files."""
    width = clip.vision.width
    return {
        "state_prompt_embedding": (1, method.prompt_length, clip.text.width),
        **{f"{ATTENTION}to_{name}.weight": (INNER, width) for name in "qkv"},
        ATTENTION + "to_out.0.weight": (width, INNER),
        ATTENTION + "to_out.0.bias": (width,),
        NORM + "weight": (width,),
        NORM + "bias": (width,),
    }


def text_tokens(method: AfClip, clip: Clip) -> Tensor:
    """Return the token ids (2, L) of both texts, without the learned vectors."""
    return clip.tokenize([method.normal, method.anomalous])


def encode_texts(method: AfClip, clip: Clip, learned: Mapping[str, Tensor]) -> Tensor:
    """Return the features (2, C) of the normal and the anomalous text, un-normalised.

    The learned vectors come before the start token, so every token's position moves by their number.
    Nothing after the longest text is kept: exact under the causal mask.
    """
    text, tokens = clip.text, text_tokens(method, clip)
    vectors = learned["state_prompt_embedding"].expand(len(tokens), -1, -1)
    x = torch.cat([vectors, text.module.token_embedding(tokens)], dim=1)
    x = x + text.module.positional_embedding[: x.shape[1]]
    for block in text.blocks:
        x = block(x)
    front = tokens.new_zeros(len(tokens), method.prompt_length)
    return text.pool(x, torch.cat([front, tokens], dim=1))


def check_fit(method: AfClip, clip: Clip) -> None:
    """Refuse blocks, neighbourhoods, heads and prompts that do not fit."""
    depth = len(clip.vision.blocks)
    if not (method.features and 1 <= min(method.features) <= max(method.features) <= depth):
        raise MethodError(
            f"features {method.features} are not all among {depth} image blocks; choose others with "
            "--set features=..."
        )
    if not method.neighbourhoods or any(side < 1 or side % 2 == 0 for side in method.neighbourhoods):
        raise MethodError(f"neighbourhoods {method.neighbourhoods} must be odd numbers of patches, from 1")
    if method.heads < 1 or INNER % method.heads:
        raise MethodError(f"{method.heads} heads do not divide an attention of width {INNER}")
    length = method.prompt_length + text_tokens(method, clip).shape[1]
    if method.prompt_length < 1 or length > clip.text.context:
        raise MethodError(
            f"{method.prompt_length} learned vectors and the text make {length} positions, the text tower "
            f"has {clip.text.context}; choose another --set prompt_length=..."
        )
