"""CLIP's tokenizer over a small table of the tokens that captions use; and what texts have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def whole_tokenizer(context: int) -> Any:
    """Return open_clip's tokenizer for texts of ``context`` tokens; making it reads 49,000 merges."""
    import open_clip

    return open_clip.tokenizer.SimpleTokenizer(context_length=context)


class PrunedTokenizer:
    """Maps CLIP's token ids to rows of a pruned table; all other tokens share one unknown row.

    Rows: 0 padding, 1 unknown, then the kept tokens in CLIP's order, then start and end of text.  The
    end of text keeps the highest row, where CLIP's text tower looks for it.
    """

    def __init__(self, full: Any, kept: Sequence[int]) -> None:
        self.full = full
        size = max(full.sot_token_id, full.eot_token_id, *kept) + 1
        self.table = torch.ones(size, dtype=torch.long)
        self.table[torch.tensor(sorted(kept))] = torch.arange(2, 2 + len(kept))
        self.table[full.sot_token_id] = 2 + len(kept)
        self.table[full.eot_token_id] = 3 + len(kept)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return rows (n, L) int64 of ``texts``, 0 after the end of text."""
        ids: Tensor = self.full(texts, context_length)
        past = ids.argmax(dim=-1, keepdim=True) < torch.arange(ids.shape[1])
        return self.table[ids].masked_fill(past, 0)


def rows_for(kept: Sequence[int]) -> int:
    """Return the number of rows of the pruned table."""
    return len(kept) + 4


def tokens_of(full: Any, texts: Iterable[str]) -> list[int]:
    """Return the sorted ids of the tokens that ``texts`` consist of."""
    return sorted({token for text in texts for token in full.encode(text)})


def beginnings(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each distinct beginning of texts ends first, and which one ends at each token.

    ``tokens`` (n, L); the places (M,) count through the flattened tokens, the numbers (n, L) are below M.
    What follows the end of a text has the number of nobody in particular.
    """
    following: dict[tuple[int, int], int] = {}
    first: list[int] = []
    nodes: list[list[int]] = []
    for row, (text, end) in enumerate(zip(tokens.tolist(), tokens.argmax(dim=-1).tolist(), strict=True)):
        number, way = -1, [0] * len(text)
        for place in range(end + 1):
            step = number, text[place]
            number = following.setdefault(step, len(first))
            if number == len(first):
                first.append(row * len(text) + place)
            way[place] = number
        nodes.append(way)
    return torch.tensor(first, device=tokens.device), torch.tensor(nodes, device=tokens.device)
