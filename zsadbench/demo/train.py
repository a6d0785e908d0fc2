"""Training of the miniature CLIP, in two stages, that can be broken off and resumed.

The first trains both towers on the terms of ``losses.py``.  Words also need something else to differ in than
the state: the second, short, gives the text tower alone connotations of words that had none (``traits.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError, WeightsError
from ..files import write_atomic
from .batches import pairs
from .losses import WEIGHTS, losses
from .student import Student


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: ``images``, of which the last ``decay`` part lowers the rate to zero.

    A step averages the gradients of ``shards`` batches of ``pairs`` pairs each, computed side by side.
    The second stage sees ``more`` of their number again.
    """

    images: int
    seed: int = 0
    more: float = 0.25
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
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return _train(recipe, out, pool, seconds, resume, every, half, say, probe)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact)


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
    student.model.visual.half().float().requires_grad_(False)
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
    """Return AdamW that decays matrices, and leaves norms and biases alone."""
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
    """Write the weights in half precision; the logit scale, which would not be 100 in it, stays as it is."""
    from safetensors.torch import save

    state = {
        key: value.detach().half().contiguous() if key != "logit_scale" else value
        for key, value in student.model.state_dict().items()
        if key != "attn_mask"
    }
    write_atomic(out, save(state))
