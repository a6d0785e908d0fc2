"""AdaCLIP (Cao et al., ECCV 2024, arXiv 2407.15795): prompts in both towers, made anew for every image."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, ensemble, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Number, Positive, Preprocess, Seed, Sigma, Weight
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import FLAWED, NORMAL_STATES, Anchors, as_grid, check_prepared, deep_vectors, encode_per_image

PATCHES_PER_CLUSTER = 5
Learned = Mapping[str, Tensor]
Tower = Literal["visual", "text"]
BRANCH: dict[Tower, str] = {"text": "L", "visual": "V"}


@dataclass(frozen=True)
class AdaClip:
    """A plain walk makes prompts for the image; a second one with them meets texts that have them too.

    The prompts of a block are ``prompt_length`` learned vectors (``prompt_type`` S) plus as many that linear
    layers make of the image embedding (D), rounded to float16 unless ``half_prompts`` is off, in the image
    tower (``prompt_branch`` V), the text tower (L) or both, before the first ``prompt_depth`` blocks.
    ``features`` are the image blocks (from 1) whose patch tokens are projected, each by a layer of its own.
    ``fusion`` says how the most anomalous patches enter the image score with ``fusion_weight``: as the mean
    of the means of ``clusters`` clusters, as their plain mean, as the paper writes it, or not at all.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="gelu", position="bicubic")
    preprocess: Preprocess = Preprocess(518)
    checkpoint: str = ""
    normal: tuple[str, ...] = NORMAL_STATES
    anomalous: tuple[str, ...] = ("damaged {}", "broken {}", *FLAWED)
    templates: tuple[str, ...] = (
        "a bad photo of a {}.",
        "a low resolution photo of the {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
    )
    features: tuple[Count, ...] = (6, 12, 18, 24)
    prompt_depth: Number = 4
    prompt_length: Count = 5
    prompt_branch: Literal["VL", "V", "L", "none"] = "VL"
    prompt_type: Literal["SD", "S", "D"] = "SD"
    half_prompts: bool = True
    fusion: Literal["clusters", "mean", "paper", "none"] = "clusters"
    clusters: Count = 20
    cluster_seed: Seed = 111
    fusion_weight: Weight = 0.2
    scale: Positive = 100.0
    sigma: Sigma = 4.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AdaClipObserver:
        """Load what was learned, begin the sentences, and encode them where no image changes them.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "adaclip", checkpoint_shapes(self, clip))
        learned = {name: value.to(clip.device) for name, value in learned.items()}
        clip.vision.tap(stream=[0])
        texts = {name: sentences(self, clip, words) for name, words in wordings.items()}
        observer = AdaClipObserver(self, clip, learned, texts)
        if "L" in self.prompt_branch and "D" in self.prompt_type and self.prompt_depth > 1:
            return observer
        any_image = torch.zeros(len(texts), clip.vision.proj.shape[1], device=clip.device)
        fixed = zip(texts, observer.anchors([*texts], any_image), strict=True)
        return replace(observer, fixed=Anchors(dict(fixed)))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the probabilities of the enlarged logits (corners aligned), smoothed."""
        large = render(evidence["logit"], size, align_corners=True).sigmoid()
        return render(large, size, sigma=self.sigma * size[0] / self.preprocess.size)  # the Gaussian alone

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the class token fused with the most anomalous patches."""
        return evidence["score"]


@dataclass(frozen=True)
class Sentences:
    """The ``tokens`` (P, L) of a category, ``normal`` ones first, and what leaves text block 0, (P, L, W)."""

    tokens: Tensor
    begun: Tensor
    normal: int


@dataclass(frozen=True)
class AdaClipObserver:
    """Evidence: ``logit`` (B, gh, gw), anomalous minus normal, mean over layers; ``score`` (B,)."""

    method: AdaClip
    clip: Clip
    learned: Learned
    texts: Mapping[str, Sentences]
    fixed: Anchors | None = None

    def observe(self, batch: Batch) -> Evidence:
        """Look at the images, look again with the prompts made of them, and compare with their texts."""
        method, trace = self.method, self.clip.vision.trace(batch)
        image = image_embedding(self.clip, trace)
        seen = look_again(method, self.clip, self.learned, trace.stream(0), image)
        token, patches = projected(self.learned, *seen)
        anchors = self.anchors(batch.categories, image)
        logit = difference(method, patches, anchors).mean(dim=1)
        fused = fused_feature(method, token, patches, logit)
        return {
            "logit": as_grid(logit, self.clip.vision.grid(batch.images)),
            "score": difference(method, fused, anchors).sigmoid(),
        }

    def anchors(self, categories: Sequence[str], image: Tensor) -> Tensor:
        """Return the anchors (B, 2, C) of each image, whose embeddings ``image`` (B, C) are given."""
        if self.fixed is not None:
            return self.fixed.of(categories)
        check_prepared(categories, self.texts)
        found = image.new_empty(len(image), 2, image.shape[1])
        for category in set(categories):
            rows, texts = [n for n, name in enumerate(categories) if name == category], self.texts[category]
            features = sentence_features(self.method, self.clip, self.learned, texts, image[rows])
            found[rows] = state_anchors(features, texts.normal)
        return found


def image_embedding(clip: Clip, trace: Trace) -> Tensor:
    """Return the plain image embeddings (B, C), un-normalised: what dynamic prompts are made of."""
    # Not `class_token`: what it differs by in the last bits can move a patch to another cluster.
    return clip.vision.project(trace.output[:, 0]).float()


def look_again(
    method: AdaClip, clip: Clip, learned: Learned, x: Tensor, image: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Walk the image tower over ``x`` (B, 1+N, W), as it enters block 0, with prompts behind the patches.

    Returns the image embeddings (B, C) and the patch tokens (B, N, W) after each of ``features``.
    """
    own, layers = x.shape[1], {}
    deep = prompts(method, learned, "visual", range(method.prompt_depth), image)
    for number, block in enumerate(clip.vision.blocks):
        if number in deep:
            behind = deep_vectors(deep[number].expand(len(x), -1, -1), 1, method.half_prompts)
            x = torch.cat([x[:, :own], behind.to(x.dtype)], dim=1)
        x = block(x)
        if number + 1 in method.features:
            layers[number + 1] = x[:, 1:own].float()
    return clip.vision.project(x[:, 0]).float(), [layers[layer] for layer in method.features]


def prompts(
    method: AdaClip, learned: Learned, tower: Tower, blocks: Iterable[int], image: Tensor
) -> dict[int, Tensor]:
    """Return the prompts (B, M, W), or (1, M, W) where no image changes them, before each of ``blocks``."""
    if BRANCH[tower] not in method.prompt_branch:
        return {}
    dynamic = dynamic_prompts(method, learned, tower, image) if "D" in method.prompt_type else 0
    name, none = f"{tower}_prompter.static_prompts.", image.new_zeros(1, 1)
    return {block: dynamic + learned.get(f"{name}{block}", none)[None] for block in blocks}


def dynamic_prompts(method: AdaClip, learned: Learned, tower: Tower, image: Tensor) -> Tensor:
    """Return the prompts (B, M, W) that linear layers make of ``image`` (B, C), the same for every block."""
    head = f"dynamic_{tower}_prompt_generator.head."
    return torch.stack([linear(learned, f"{head}{j}", image) for j in range(method.prompt_length)], dim=1)


def linear(learned: Learned, name: str, x: Tensor) -> Tensor:
    """Return the learned linear layer ``name`` of ``x``."""
    return F.linear(x, learned[f"{name}.weight"], learned[f"{name}.bias"])


def projected(learned: Learned, token: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the class token (B, C) and the patches of all layers (B, L, N, C), projected, unit length."""
    heads = [linear(learned, f"patch_token_layer.head.{n}", layer) for n, layer in enumerate(layers)]
    patches = F.normalize(torch.stack(heads, dim=1), dim=-1)
    return F.normalize(linear(learned, "cls_token_layer.head.0", token), dim=-1), patches


def sentences(method: AdaClip, clip: Clip, words: str) -> Sentences:
    """Return the sentences of a category, as far as no image changes them; hyphens become blanks."""
    states = (method.normal, method.anomalous)
    normal, anomalous = (ensemble(one, method.templates, words.replace("-", " ")) for one in states)
    tokens = clip.tokenize([*normal, *anomalous])
    tokens = F.pad(tokens, (0, max(0, 1 + method.prompt_length - tokens.shape[1])))  # room for the prompts
    with torch.no_grad():
        begun = clip.text.blocks[0](clip.text.embed(tokens))
    return Sentences(tokens, begun, len(normal))


def sentence_features(
    method: AdaClip, clip: Clip, learned: Learned, texts: Sentences, image: Tensor
) -> Tensor:
    """Return the features (B, P, C) of a category's sentences for each of ``image`` (B, C), un-normalised.

    Before text block 0 there is no prompt: the first static one is never used.
    """
    deep = prompts(method, learned, "text", range(1, min(method.prompt_depth, len(clip.text.blocks))), image)
    x = texts.begun.expand(len(image), -1, -1, -1)
    return encode_per_image(clip.text, x, texts.tokens, deep, first=1, half=method.half_prompts)


def state_anchors(features: Tensor, normal: int) -> Tensor:
    """Return unit anchors (B, 2, C) of sentence features (B, P, C), of which the first ``normal`` are."""
    unit = F.normalize(features, dim=-1)
    return F.normalize(torch.stack([unit[:, :normal].mean(1), unit[:, normal:].mean(1)], dim=1), dim=-1)


def difference(method: AdaClip, features: Tensor, anchors: Tensor) -> Tensor:
    """Return the anomalous minus the normal logit (B, ...) of unit ``features`` (B, ..., C)."""
    return method.scale * torch.einsum("b...c,bc->b...", features, anchors[:, 1] - anchors[:, 0])


def fused_feature(method: AdaClip, token: Tensor, patches: Tensor, logit: Tensor) -> Tensor:
    """Return the class token (B, C) fused with the most anomalous patches (Hybrid Semantic Fusion).

    ``patches`` (B, L, N, C) are ranked by ``logit`` (B, N).
    """
    if method.fusion == "none":
        return token
    pairs = zip(patches, logit, strict=True)
    region = torch.stack([anomalous_feature(method, tokens, rank) for tokens, rank in pairs])
    return F.normalize(method.fusion_weight * region + (1 - method.fusion_weight) * token, dim=-1)


def anomalous_feature(method: AdaClip, patches: Tensor, logit: Tensor) -> Tensor:
    """Return the unit feature (C,) of the anomalous patches of one image, (L, N, C) with ``logit`` (N,)."""
    mean = patches.mean(dim=0)
    if method.fusion == "paper":
        labels, p = clustered(method, mean), logit.sigmoid()
        worst = max(range(method.clusters), key=lambda label: float(p[labels == label].mean().nan_to_num(-1)))
        return F.normalize(mean[labels == worst].mean(dim=0), dim=0)
    # Logits rank as probabilities do, and do not tie where those reach one.
    chosen = logit.topk(min(len(logit), PATCHES_PER_CLUSTER * method.clusters)).indices
    if method.fusion == "mean":
        return F.normalize(mean[chosen].mean(dim=0), dim=0)
    labels = clustered(method, patches[:, chosen].transpose(0, 1).flatten(1))
    centres = [mean[chosen[labels == label]].mean(dim=0) for label in torch.unique(labels)]
    return F.normalize(torch.stack(centres).mean(dim=0), dim=0)


def clustered(method: AdaClip, rows: Tensor) -> Tensor:
    """Return k-means labels (n,) of ``rows`` (n, D), from the same seed for every image."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    clusters = min(method.clusters, len(rows))
    kmeans = KMeans(clusters, n_init=1, random_state=method.cluster_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal patches leave clusters empty
        labels = kmeans.fit_predict(rows.detach().cpu().numpy())
    return torch.from_numpy(labels).to(rows.device)


def checkpoint_shapes(method: AdaClip, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter, named as in the authors' files without prefix."""
    joint, length = clip.vision.proj.shape[1], method.prompt_length
    widths: dict[Tower, int] = {"text": clip.text.width, "visual": clip.vision.width}
    layers = {f"patch_token_layer.head.{n}": (joint, clip.vision.width) for n in range(len(method.features))}
    layers["cls_token_layer.head.0"] = (joint, joint)
    shapes: dict[str, tuple[int, ...]] = {}
    for tower, width in widths.items():
        if "S" in method.prompt_type and BRANCH[tower] in method.prompt_branch:
            names = [f"{tower}_prompter.static_prompts.{block}" for block in range(method.prompt_depth)]
            shapes |= dict.fromkeys(names, (length, width))
        if "D" in method.prompt_type and method.prompt_branch != "none":
            names = [f"dynamic_{tower}_prompt_generator.head.{j}" for j in range(length)]
            layers |= dict.fromkeys(names, (width, joint))
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def check_fit(method: AdaClip, clip: Clip) -> None:
    """Refuse blocks, prompts and clusters that do not fit."""
    depth = len(clip.vision.blocks)
    blocks = (*method.features, method.prompt_depth)
    if not method.features or not 1 <= min(blocks) <= max(blocks) <= depth:
        raise MethodError(
            f"features {method.features}, prompt_depth {method.prompt_depth}: there are blocks 1 to {depth}"
        )
    if not 1 <= method.prompt_length < clip.text.context:
        raise MethodError(f"prompt_length={method.prompt_length}: choose 1 to {clip.text.context - 1}")
    if method.clusters < 1 or not 0 <= method.cluster_seed < 2**32:
        raise MethodError(
            f"clusters={method.clusters}, cluster_seed={method.cluster_seed}: choose from 1 and from 0 up"
        )
