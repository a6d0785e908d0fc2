"""What the miniature CLIP is trained on: contrast between captions, and what makes it learn fast.

The terms of the loss, weighted by ``WEIGHTS``:

1. contrast: CLIP's symmetric contrast over the batch; every caption that is true of a picture is a positive
   (Khosla et al., 2020, for several positives).
2. pair: each picture against the two captions of its own pair, sound and faulty.
3. patches: each patch of the value-value stream over all blocks, the form of AnoCLIP (Deng et al., 2023),
   against the same two captions, both classes weighted equally.
4. windows: the class token over a window of patches, the form of WinCLIP (Jeong et al., 2023), against the
   same two captions: it should say whether there is a fault in the window.
5. attention: the class token of a faulty picture attends to the fault in the last blocks; without this
   term it learns to look for small faults much later than the patches learn to know them.
6. traits: each picture against two texts of which one has a true word for its colour, light, focus or grain
   and the other a false one, so that its feature holds more than the state.
7. idle words: two texts that differ in a word that says nothing of the state must not differ along the
   direction in which faults move the pictures.

Without the last two terms any two words differ along the state, one way or the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Pairs
from .student import Student, normalised

WEIGHTS = (0.5, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0)
"""Of contrast, pair, patches, windows, attention, traits and idle words."""

DEFECTIVE = 0.15
"""A patch is a positive if more than this part of it is defective; one with a smaller part is left out."""


def losses(student: Student, batch: Pairs, precision: torch.dtype) -> Tensor:
    """Return the seven terms (7,): contrast, pair, patches, windows, attention, traits, idle words."""
    images, windows = normalised(batch.images), [torch.from_numpy(places) for places in batch.windows]
    # Threads would share a cache of rounded weights, and which of them fills it decides how gradients add up.
    with torch.autocast("cpu", precision, enabled=precision != torch.float32, cache_enabled=False):
        picture, local, gaze = student.see(images)
        peeps = torch.cat([student.peep(images, places) for places in windows], dim=1)
        texts = student.read([*batch.texts, *batch.twins])
    picture, local, peeps, texts = (F.normalize(t.float(), dim=-1) for t in (picture, local, peeps, texts))
    texts, twins = texts[: len(batch.texts)], texts[len(batch.texts) :]
    scale = student.model.logit_scale.exp()
    logits = scale * picture @ texts.T
    fits = torch.from_numpy(batch.fits).float()
    contrast = (several_positives(logits, fits) + several_positives(logits.T, fits.T)) / 2
    own = torch.stack([texts[0::2], texts[1::2]], dim=1).repeat_interleave(2, dim=0)
    pair = F.cross_entropy(scale * torch.einsum("bc,bkc->bk", picture, own), torch.arange(len(own)) % 2)
    state = scale * (own[:, 1] - own[:, 0])
    share = torch.from_numpy(batch.share).flatten(1)
    rows = torch.arange(len(share))[:, None, None]
    inside = torch.cat([share[rows, places].amax(dim=2) for places in windows], dim=1)
    patches = balanced(torch.einsum("bnc,bc->bn", local, state), share)
    looked = balanced(torch.einsum("bkc,bc->bk", peeps, state), inside)
    apart = twins[1::2] - twins[0::2]
    told = mistold(scale * picture @ apart.T, torch.from_numpy(batch.says))
    shift = picture[1::2].mean(dim=0) - picture[0::2].mean(dim=0)
    idle = F.cosine_similarity(shift, apart, dim=-1).square().mean()
    return torch.stack([contrast, pair, patches, looked, unseen(gaze, share), told, idle])


def several_positives(logits: Tensor, fits: Tensor) -> Tensor:
    """Return the mean over rows of the mean negative log-probability of the columns that fit."""
    return -((F.log_softmax(logits, dim=1) * fits).sum(dim=1) / fits.sum(dim=1).clamp(min=1)).mean()


def balanced(margin: Tensor, share: Tensor) -> Tensor:
    """Return the binary cross-entropy of margins, defective and sound places weighted equally."""
    positive, negative = share > DEFECTIVE, share == 0
    return (F.softplus(-margin[positive]).mean() + F.softplus(margin[negative]).mean()) / 2


def unseen(gaze: Tensor, share: Tensor) -> Tensor:
    """Return the mean negative logarithm of the attention that faults receive, over faulty pictures."""
    defective = (share > DEFECTIVE).float()
    faulty = defective.sum(dim=1) > 0
    received = torch.einsum("bgn,bn->bg", gaze[faulty], defective[faulty])
    return -torch.log(received + 1e-4).mean()


def mistold(margin: Tensor, says: Tensor) -> Tensor:
    """Return the binary cross-entropy of margins (second word less first) where ``says`` is not 0."""
    known = says != 0
    return (F.softplus(margin * says) * known).sum() / known.sum().clamp(min=1)
