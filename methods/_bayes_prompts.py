"""The prompts of Bayes-PFL (arXiv 2503.10080): biases from planar flows, added to learned vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zsadbench.clip import Clip
from zsadbench.errors import MethodError
from zsadbench.inputs import Count

from ._shared import check_prepared, encode_per_image

PLACEHOLDER = "X"
SIDES = ("normal", "abnormal")
NETWORKS = ("weight_mean", "weight_log_variance")
SENTENCES_AT_ONCE = 960
LOGDET_EPSILON = 1e-5


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint fixes of the prompts; `BayesPfl` says what each means."""

    prompts: Count = 3
    context: Count = 5
    state: Count = 5
    flows: Count = 10


class Drawn(NamedTuple):
    """Draws from n distributions.

    ``mean`` and ``var`` (n, E), draws before and after the flow (n, R, E), ``logdet`` (n, R) of the flow.
    """

    mean: Tensor
    var: Tensor
    start: Tensor
    end: Tensor
    logdet: Tensor


class Planar(NamedTuple):
    """K planar flows (Rezende and Mohamed, 2015) of n distributions: ``u``, ``w`` (n, K, E), ``b`` (n, K)."""

    u: Tensor
    w: Tensor
    b: Tensor


def context_bias(learned: Mapping[str, Tensor], image: Tensor, noise: Tensor) -> Drawn:
    """Return context biases of raw image embeddings (B, E) from standard normal ``noise`` (B, R, E)."""
    return drawn(learned, "context_encoder", image, noise, context_flow(learned, image))


def state_bias(learned: Mapping[str, Tensor], noise: Tensor) -> Drawn:
    """Return the biases of the normal and the abnormal state from standard normal ``noise`` (2, R, E)."""
    state = torch.cat([learned[f"PFL_{side}.state"] for side in SIDES])
    u, w, b = (torch.cat([learned[f"PFL_{side}.amor_{part}"] for side in SIDES]) for part in "uwb")
    return drawn(learned, "state_encoder", state, noise, Planar(u[..., 0], w[:, :, 0], b[..., 0, 0]))


def context_flow(learned: Mapping[str, Tensor], image: Tensor) -> Planar:
    """Return the flows that an image embedding (B, E) gives itself."""
    u, w, b = (
        F.linear(image, learned[f"PFL_context.amor_{part}.weight"], learned[f"PFL_context.amor_{part}.bias"])
        for part in "uwb"
    )
    shape = (b.shape[-1], image.shape[-1])
    return Planar(torch.unflatten(u, -1, shape), torch.unflatten(w, -1, shape), b)


def drawn(learned: Mapping[str, Tensor], encoder: str, seen: Tensor, noise: Tensor, flow: Planar) -> Drawn:
    """Return draws from the Gaussians that ``encoder`` makes of ``seen`` (n, E), sent through ``flow``.

    The variance is exp(l / 2) where the network gives l, so the standard deviation is exp(l / 4).
    """
    mean, halved = (network(learned, f"{encoder}.{name}", seen) for name in NETWORKS)
    var = (0.5 * halved).exp()
    start = mean[:, None] + noise * var.sqrt()[:, None]
    return Drawn(mean, var, start, *flowed(start, flow))


def network(learned: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return the output (n, E) of three linear layers with softplus between them."""
    for number in (0, 2, 4):
        x = F.softplus(x) if number else x
        layer = f"{name}.module.{number}"
        x = F.linear(x, learned[f"{layer}.weight"], learned[f"{layer}.bias"])
    return x


def flowed(z: Tensor, flow: Planar) -> tuple[Tensor, Tensor]:
    """Return draws ``z`` (n, R, E) after all flows, and the log-determinants (n, R)."""
    logdet = z.new_zeros(z.shape[:2])
    for u, w, b in zip(flow.u.unbind(1), flow.w.unbind(1), flow.b.unbind(1), strict=True):
        bent = torch.tanh((z @ w[..., None])[..., 0] + b[:, None])
        slope = 1 + (1 - bent.square()) * (w * u).sum(dim=-1, keepdim=True)
        logdet = logdet + torch.log(slope.abs() + LOGDET_EPSILON)
        z = z + bent[..., None] * u[:, None]
    return z, logdet


def encode_texts(
    clip: Clip, learned: Mapping[str, Tensor], words: Tensor, context: Tensor, state: Tensor
) -> Tensor:
    """Return unit texts (B, 2, R * P, E) of each image, side, draw and prompt; gradients reach ``learned``.

    ``words`` (B, L) are token ids, the placeholder in second place; the biases ``context`` (B, R, E) and
    ``state`` (2, R, E) are added to every vector of theirs.  All sentences go through the tower together.
    """
    own = torch.stack([learned[f"prompt_state_{side}"] for side in SIDES])  # (2, P, Q, E)
    shared = learned["prompt_context"] + context[:, :, None, None]  # (B, R, P, C, E)
    own = own[:, None] + state[:, :, None, None]  # (2, R, P, Q, E)
    vectors = shared.shape[-2] + own.shape[-2]
    embedded = clip.text.module.token_embedding(words)[:, None, None, None]  # (B, 1, 1, 1, L, E)
    shape = (len(words), *own.shape[:3])
    parts = (embedded[..., :1, :], shared[:, None], own, embedded[..., 2:, :])
    x = torch.cat([part.expand(*shape, -1, -1) for part in parts], dim=-2)
    x = (x + clip.text.module.positional_embedding[: x.shape[-2]]).flatten(0, 3)
    moved = torch.cat([words[:, :1], words.new_zeros(len(words), vectors), words[:, 2:]], dim=1)
    ends = moved.repeat_interleave(len(x) // len(words), dim=0)
    some = zip(*(torch.split(every, SENTENCES_AT_ONCE) for every in (x, ends)), strict=True)
    texts = torch.cat([encode_per_image(clip.text, part[None], tokens, {})[0] for part, tokens in some])
    return F.normalize(texts.view(*shape, -1).flatten(2, 3), dim=-1)


def word_tokens(sizes: Sizes, clip: Clip, wordings: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the token ids (L,) of each category's words, a placeholder where all vectors will stand.

    Raises:
        MethodError: if vectors and words of a category exceed the text tower's places.
    """
    rows = clip.tokenize([f"{PLACEHOLDER} {words}" for words in wordings.values()])
    found = {name: row[: int(row.argmax()) + 1] for name, row in zip(wordings, rows, strict=True)}
    for name, row in found.items():
        length = len(row) - 1 + sizes.context + sizes.state
        if length > clip.text.context:
            raise MethodError(
                f"vectors and words of '{name}' take {length} places, the text tower has "
                f"{clip.text.context}; shorten the words"
            )
    return found


def tokens_of(categories: Sequence[str], words: Mapping[str, Tensor]) -> Tensor:
    """Return the token ids (B, L) of each image's category, as long as the longest.

    Raises:
        MethodError: if a category was not prepared.
    """
    check_prepared(categories, words)
    return pad_sequence([words[name] for name in categories], batch_first=True)


def prompt_shapes(sizes: Sizes, embed: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of what makes the prompts."""
    shapes: dict[str, tuple[int, ...]] = {"prompt_context": (sizes.prompts, sizes.context, embed)}
    for encoder in ("context_encoder", "state_encoder"):
        for name in NETWORKS:
            shapes |= network_shapes(f"{encoder}.{name}", embed, hidden)
    for part, count in (("u", sizes.flows * embed), ("w", sizes.flows * embed), ("b", sizes.flows)):
        name = f"PFL_context.amor_{part}"
        shapes |= {f"{name}.weight": (count, embed), f"{name}.bias": (count,)}
    for side in SIDES:
        shapes |= {
            f"prompt_state_{side}": (sizes.prompts, sizes.state, embed),
            f"PFL_{side}.state": (1, embed),
            f"PFL_{side}.amor_u": (1, sizes.flows, embed, 1),
            f"PFL_{side}.amor_w": (1, sizes.flows, 1, embed),
            f"PFL_{side}.amor_b": (1, sizes.flows, 1, 1),
        }
    return shapes


def network_shapes(name: str, embed: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of one `network`."""
    weights = {0: (hidden, embed), 2: (hidden, hidden), 4: (embed, hidden)}
    shapes: dict[str, tuple[int, ...]] = {}
    for number, shape in weights.items():
        shapes |= {f"{name}.module.{number}.weight": shape, f"{name}.module.{number}.bias": shape[:1]}
    return shapes
