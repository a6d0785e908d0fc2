"""Two learned prompts that name no object: AnomalyCLIP's (arXiv 2310.18961), which others took over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from zsadbench.clip import Clip
from zsadbench.errors import MethodError

from ._shared import encode_per_image, overwrite

PLACEHOLDER = "X"


class LearnedPrompts(Protocol):
    """What the prompts need to know of a method; `AnomalyClip` says what each means."""

    @property
    def normal_words(self) -> str:
        """Fixed words of the normal prompt."""
        ...

    @property
    def anomalous_words(self) -> str:
        """Fixed words of the anomalous prompt."""
        ...

    @property
    def context(self) -> int:
        """Learned vectors in front of the words."""
        ...

    @property
    def deep_prompts(self) -> int:
        """Text blocks, from the second one, whose input is overwritten."""
        ...

    @property
    def deep_length(self) -> int:
        """Learned vectors of each."""
        ...

    @property
    def half_prompts(self) -> bool:
        """Whether these are rounded to float16."""
        ...


def checkpoint_shapes(method: LearnedPrompts, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter, named as in the authors' files."""
    width = clip.text.width
    deep = {f"compound_prompts_text.{i}": (method.deep_length, width) for i in range(method.deep_prompts)}
    context = (1, 1, method.context, width)
    return {"ctx_pos": context, "ctx_neg": context, **deep}


def prompt_texts(method: LearnedPrompts) -> list[str]:
    """Return the normal and the anomalous prompt, placeholders where the learned vectors go."""
    blank = " ".join([PLACEHOLDER] * method.context)
    return [f"{blank} {words}." for words in (method.normal_words, method.anomalous_words)]


def prompt_tokens(method: LearnedPrompts, clip: Clip) -> Tensor:
    """Return the token ids (2, L) of both prompts."""
    return clip.tokenize(prompt_texts(method))


def encode_prompts(method: LearnedPrompts, clip: Clip, learned: Mapping[str, Tensor]) -> Tensor:
    """Return the text features (2, C) of the normal and the anomalous prompt, un-normalised.

    Gradients reach ``learned``, whose names and shapes are those of `checkpoint_shapes`.
    """
    return _encode(method, clip, learned, words(method, clip, learned)[None], prompt_tokens(method, clip))[0]


def encode_guided(
    method: LearnedPrompts, clip: Clip, learned: Mapping[str, Tensor], images: Tensor
) -> Tensor:
    """Return the text features (B, 2, C) of both prompts for each of ``images`` (B, W), un-normalised.

    Behind the learned vectors an image's own vector stands in both prompts, and all that follows moves on by
    one.
    """
    cut, tokens = 1 + method.context, prompt_tokens(method, clip)
    vectors = words(method, clip, learned).expand(len(images), -1, -1, -1)
    seen = images[:, None, None].expand(-1, len(tokens), -1, -1)
    longer = torch.cat([vectors[:, :, :cut], seen, vectors[:, :, cut:]], dim=2)
    moved = torch.cat([tokens[:, :cut], torch.zeros_like(tokens[:, :1]), tokens[:, cut:]], dim=1)
    return _encode(method, clip, learned, longer, moved)


def words(method: LearnedPrompts, clip: Clip, learned: Mapping[str, Tensor]) -> Tensor:
    """Return the word vectors (2, L, W) of both prompts, the learned ones in place, without positions."""
    context = torch.cat([learned["ctx_pos"], learned["ctx_neg"]])[:, 0]
    return overwrite(clip.text.module.token_embedding(prompt_tokens(method, clip)), context)


def _encode(
    method: LearnedPrompts, clip: Clip, learned: Mapping[str, Tensor], vectors: Tensor, tokens: Tensor
) -> Tensor:
    text = clip.text
    x = vectors + text.module.positional_embedding[: tokens.shape[1]]
    deep = {i + 1: learned[f"compound_prompts_text.{i}"][None] for i in range(method.deep_prompts)}
    return encode_per_image(text, x, tokens, deep, half=method.half_prompts)


def check_prompts(method: LearnedPrompts, clip: Clip) -> None:
    """Refuse prompts that the text tower has no blocks or places for.

    Raises:
        MethodError: naming the parameter.
    """
    text_depth = len(clip.text.blocks)
    if not 0 <= method.deep_prompts < text_depth:
        raise MethodError(
            f"{method.deep_prompts} deep prompts do not fit a text tower of {text_depth} blocks, the first "
            f"without one; choose 0 to {text_depth - 1} with --set deep_prompts=..."
        )
    if not 0 <= method.deep_length <= method.context:
        raise MethodError(
            f"deep prompts of {method.deep_length} vectors do not fit the {method.context} learned ones; "
            "choose a smaller --set deep_length=..."
        )


def check_guidance(method: LearnedPrompts, clip: Clip) -> None:
    """Refuse image vectors in the prompts where these have another width, or no place left.

    Raises:
        MethodError: saying which.
    """
    joint, width = clip.vision.proj.shape[1], clip.text.width
    if joint != width:
        raise MethodError(
            f"guidance puts an image feature of width {joint} among word vectors of width {width}: backbone "
            f"'{clip.backbone.name}' does not allow it; use --set guidance=none or another --backbone"
        )
    if prompt_tokens(method, clip).shape[1] >= clip.text.context:
        raise MethodError(
            f"the prompts leave no place for an image feature among {clip.text.context}; choose a smaller "
            "--set context=..."
        )
