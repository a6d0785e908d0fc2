"""Training of the miniature CLIP: contrast between captions, and what makes so small a CLIP learn fast.

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

Without the last two terms any two words differ along the state, one way or the other.  Words also need
something else to differ in: a second stage, short, gives the text tower alone connotations of words that had
none (``traits.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import Block, PrunedTokenizer, Text, Vision, find_weights
from ..errors import UsageError, WeightsError
from ..files import write_atomic
from ..inputs import OPENAI_MEAN, OPENAI_STD, Backbone
from .batches import Pairs, pairs

WEIGHTS = (0.5, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0)
"""Of contrast, pair, patches, windows, attention, traits and idle words."""

GUIDED = 2
"""Last blocks in which the class token is shown where to look."""

DEFECTIVE = 0.15
"""A patch is a positive if more than this part of it is defective; one with a smaller part is left out."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: ``images``, of which the last ``decay`` part lowers the rate to zero.

    A step averages the gradients of ``shards`` batches of ``pairs`` pairs each, computed side by side.
    The second stage sees ``more`` of their number again.
    """

    images: int
    seed: int = 0
    more: float = 0.15
    shards: int = 2
    pairs: int = 12
    rate: float = 1e-3
    warm: int = 5_000
    decay: float = 0.35

    @property
    def step(self) -> int:
        """Number of images of a step."""
        return 2 * self.shards * self.pairs

    def rate_at(self, seen: int) -> float:
        """Return the learning rate after ``seen`` images: linear warm-up, constant, then half a cosine."""
        left = (self.images - seen) / (self.decay * self.images)
        return (
            self.rate
            * min(1.0, seen / self.warm)
            * (0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left))))
        )


class Student:
    """The miniature CLIP under training: both towers, the tokenizer, the logit scale."""

    def __init__(self, seed: int) -> None:
        import open_clip

        weights = find_weights(Backbone("demo", "random"))
        torch.manual_seed(seed)
        self.model: Any = open_clip.model.CLIP(**weights.architecture())
        self.vision, self.text = Vision(self.model.visual, "bicubic-antialias"), Text(self.model)
        self.tokenizer = PrunedTokenizer(
            open_clip.tokenizer.SimpleTokenizer(context_length=self.text.context),
            weights.config["vocabulary"],
        )

    @property
    def learning(self) -> list[Tensor]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class features (B, C), value-value patch features (B, N, C) and the class token's gaze.

        Features are un-normalised; the gaze (B, G, N) is its attention to each patch in the last G blocks,
        mean over heads.
        """
        x = local = self.vision.embed(images)
        gaze = []
        for block in self.vision.blocks:
            q, k, v = block.qkv(x)
            local = local + attend(block, v, v, v)[0]
            if block is self.vision.blocks[-1]:
                x, q = x[:, :1], q[:, :, :1]
            mixed, weights = attend(block, q, k, v)
            x = x + mixed
            x = x + block.mlp(x)
            gaze.append(weights[:, :, 0, 1:])
        looks = torch.stack([weights.float().mean(dim=1) for weights in gaze[-GUIDED:]], dim=1)
        return self.vision.project(x[:, 0]), self.vision.project(local[:, 1:]), looks

    def peep(self, images: Tensor, windows: Tensor) -> Tensor:
        """Return class features (B, K, C) of windows, given as the numbers of their patches (B, K, P)."""
        tokens = self.vision.embed(images)
        rows = torch.arange(len(tokens))[:, None, None]
        patches = tokens[rows, windows + 1]
        x = torch.cat([tokens[:, None, :1].expand(-1, patches.shape[1], -1, -1), patches], dim=2).flatten(
            0, 1
        )
        for block in self.vision.blocks:
            x = x + attend(block, *block.qkv(x))[0]
            x = x + block.mlp(x)
        return torch.unflatten(self.vision.project(x[:, 0]), 0, windows.shape[:2])

    def read(self, texts: list[str]) -> Tensor:
        """Return text features (n, C), un-normalised."""
        tokens = self.tokenizer(texts, self.text.context)
        return self.text.encode(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])


def attend(block: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``block.attend`` does, and the weights (B, heads, T, T).

    Written out, its gradient is twice as fast on a CPU.
    """
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1, dtype=v.dtype)
    return block.attention.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


def normalised(images: Any) -> Tensor:
    """Return network input (B, 3, S, S) of RGB pictures (B, S, S, 3) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_MEAN, OPENAI_STD))
    return (pixels - mean) / std


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


def gradients(
    number: int, student: Student, recipe: Recipe, precision: torch.dtype, connote: bool
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of batch ``number`` for every parameter that learns, and its losses."""
    terms = losses(student, pairs(recipe.pairs, recipe.seed, number, connote), precision)
    total = (terms * torch.tensor(WEIGHTS)).sum()
    return list(torch.autograd.grad(total, student.learning)), terms.detach()


def train(
    recipe: Recipe,
    out: Path,
    *,
    seconds: float = math.inf,
    resume: bool = False,
    every: float = 120.0,
    half: bool = True,
    say: Callable[[str], None] = print,
    probe: Callable[[Student], str] | None = None,
) -> bool:
    """Train and write ``out`` (half-precision safetensors); return whether all images were seen.

    A checkpoint beside ``out`` (suffix ``.resume``) is written every ``every`` seconds and when
    ``seconds`` have passed, and deleted at the end; ``resume`` goes on from it (the second stage, of a few
    minutes, begins again).  ``half`` computes in bfloat16.  ``probe`` is called at each checkpoint and its
    report printed.

    Raises:
        UsageError: if ``out`` is no .safetensors file, or exists and is not to be gone on with.
        WeightsError: if there is nothing to resume, or it is damaged.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: weights are a .safetensors file; name one")
    if out.exists() and not resume:
        raise UsageError(f"--out {out}: exists already; go on with --resume, or choose another name")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return _train(recipe, out, pool, seconds, resume, every, half, say, probe)
    finally:
        torch.set_num_threads(threads)


def _train(
    recipe: Recipe,
    out: Path,
    pool: ThreadPoolExecutor,
    seconds: float,
    resume: bool,
    every: float,
    half: bool,
    say: Callable[[str], None],
    probe: Callable[[Student], str] | None,
) -> bool:
    student = Student(recipe.seed)
    optimiser = optimiser_of(student, recipe.rate)
    checkpoint = out.with_suffix(".resume")
    seen = restore(checkpoint, student, optimiser) if resume else 0
    say(f"{seen} of {recipe.images} images, {recipe.step} a step; a line every {every:.0f} s")
    start = saved = time.monotonic()
    begun, means = seen, torch.zeros(len(WEIGHTS))
    precision = torch.bfloat16 if half else torch.float32
    while seen < recipe.images:
        terms = step(student, optimiser, recipe, seen, recipe.rate_at(seen), pool, precision)
        seen += recipe.step
        means += 0.02 * (terms - means)
        if time.monotonic() - saved > every:
            saved = time.monotonic()
            keep(checkpoint, student, optimiser, seen)
            speed = (seen - begun) / (saved - start)
            parts = " ".join(f"{float(value):.3f}" for value in means)
            say(f"{seen} images, {speed:.1f}/s, losses {parts}" + (f", {probe(student)}" if probe else ""))
        if time.monotonic() - start >= seconds:
            break
    keep(checkpoint, student, optimiser, seen)
    export(student, out)
    if seen < recipe.images:
        return False
    connote(student, recipe, pool, precision, every, say)
    export(student, out)
    checkpoint.unlink(missing_ok=True)
    return True


def connote(
    student: Student,
    recipe: Recipe,
    pool: ThreadPoolExecutor,
    precision: torch.dtype,
    every: float,
    say: Callable[[str], None],
) -> None:
    """Teach the text tower connotations; the image tower stays as it is shipped, in half precision."""
    stage = replace(recipe, images=round(recipe.more * recipe.images), warm=1_000, decay=1.0)
    say(f"second stage: {stage.images} images for the text tower alone")
    student.model.half().float()
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(not name.startswith("visual.") and name != "logit_scale")
    optimiser, told = optimiser_of(student, stage.rate), time.monotonic()
    for seen in range(0, stage.images, stage.step):
        at, rate = recipe.images + seen, stage.rate_at(seen)
        step(student, optimiser, stage, at, rate, pool, precision, connote=True)
        if time.monotonic() - told > every:
            told = time.monotonic()
            say(f"second stage: {seen + stage.step} of {stage.images} images")


def step(
    student: Student,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    seen: int,
    rate: float,
    pool: ThreadPoolExecutor,
    precision: torch.dtype,
    connote: bool = False,
) -> Tensor:
    """Take a step on the batches that come after ``seen`` images; returns their mean losses."""
    first = seen // (2 * recipe.pairs)
    work = partial(gradients, student=student, recipe=recipe, precision=precision, connote=connote)
    shards = list(pool.map(work, range(first, first + recipe.shards)))
    update(student, optimiser, [grads for grads, _ in shards], rate)
    return torch.stack([terms for _, terms in shards]).mean(dim=0)


def optimiser_of(student: Student, rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices, and leaves norms, biases and the logit scale alone."""
    matrices = [p for p in student.learning if p.ndim >= 2]
    others = [p for p in student.learning if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def update(
    student: Student, optimiser: torch.optim.Optimizer, shards: list[list[Tensor]], rate: float
) -> None:
    """Take one step along the mean of the shards' gradients, clipped to unit norm."""
    for parameter, *grads in zip(student.learning, *shards, strict=True):
        parameter.grad = torch.stack(grads).mean(dim=0)
    torch.nn.utils.clip_grad_norm_(student.learning, 1.0)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    with torch.no_grad():
        student.model.logit_scale.clamp_(0, math.log(100))


def keep(path: Path, student: Student, optimiser: torch.optim.Optimizer, seen: int) -> None:
    """Write what a resumed training needs."""
    import io

    buffer = io.BytesIO()
    state = {"model": student.model.state_dict(), "optimiser": optimiser.state_dict(), "seen": seen}
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def restore(path: Path, student: Student, optimiser: torch.optim.Optimizer) -> int:
    """Load what ``keep`` wrote and return the number of images seen.

    Raises:
        WeightsError: if there is no such file, or it is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        student.model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except Exception as error:
        raise WeightsError(
            f"{path}: no training can be resumed from it ({error}); train anew without --resume"
        ) from error
    return int(state["seen"])


def export(student: Student, out: Path) -> None:
    """Write the weights in half precision."""
    from safetensors.torch import save

    state = {
        key: value.detach().half().contiguous()
        for key, value in student.model.state_dict().items()
        if key != "attn_mask"
    }
    write_atomic(out, save(state))
