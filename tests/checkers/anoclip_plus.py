"""Checks of the AnoCLIP+ arrays: losses, adapters and adapted maps of the authors' test-time adaptation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from methods.anoclip_plus import AnoClipPlus, AnoClipPlusObserver, Step
from tests.checkers.anoclip_encoding import (
    FEATURES,
    SCORE,
    batch_of,
    check_encoding,
    check_maps,
    clip_of,
    words_of,
)
from tests.checkers.anoclip_encoding import method_of as plain_method_of
from tests.checkers.common import Golden, Meta, activation_of, opened
from tests.kit import tiny
from zsadbench.inputs import Backbone, Preprocess

DRAWN, LEARNED = 1e-6, 5e-3
ADAPTED_SPAN = {"text": 2e-3, "linear": 5e-4}


@dataclass
class Recorder:
    """Substitutes the random numbers of the arrays and keeps what happened."""

    tag: str
    drawn: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def draw(self, key: str, what: str, step: int, shape: tuple[int, ...], std: float) -> Tensor:
        image = key.removesuffix(".png")
        name = f"noise/{image}/{step}" if what == "noise" else f"ad.{what}/{image}"
        self.drawn[image, what, step] = tiny.draw(f"anoclip/{self.tag}/{name}", shape, std)
        return self.drawn[image, what, step].clone()

    def watch(self, step: Step) -> None:
        logits = [value.detach() for value in step.logits]
        weight, bias = step.weight.detach().clone(), step.bias.detach().clone()
        self.steps.append(Step(step.soft.detach(), step.hard.detach(), logits, weight, bias))

    def all_drawn(self, what: str) -> Tensor:
        return torch.stack([value for key, value in self.drawn.items() if key[1] == what])


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, FEATURES) as golden:
        check_adapted(golden)


def check_adapted(golden: Golden) -> None:
    """Compare what AnoCLIP has too, then the adaptation and its maps."""
    meta = golden.meta
    method, batch, recorder = method_of(meta), batch_of(meta), Recorder(meta["tag"])
    prepared = method.prepare(clip_of(meta), words_of(meta, plain_method_of(meta)))
    observer = dataclasses.replace(prepared, draw=recorder.draw, watch=recorder.watch)
    with torch.inference_mode():
        check_encoding(golden)
        evidence = {**observer.observe(batch), "frame": batch.frame}
    _check_adaptation(golden, recorder, method)
    _check_adapted_tokens(golden, recorder, observer)
    score = method.image_scores(evidence, torch.zeros(len(meta["classes"]), 2))
    golden.near("image_score", score, tolerance=SCORE, of="one")
    check_maps(golden, method, evidence, ADAPTED_SPAN[method.adapter])


def method_of(meta: Meta) -> AnoClipPlus:
    """Return the method with the parameters that the arrays state."""
    return AnoClipPlus(
        Backbone(meta["config"], "random", activation_of(meta)),
        Preprocess(meta["size"], interpolation="bilinear", tiles="ends" if meta["width"] else "none"),
        adapter=meta["adapter"],
        steps=meta["epochs"],
        lr=meta["lr"],
        weight_decay=meta["weight_decay"],
        noise=meta["noise_std"],
        residual=meta["residual"],
        hard_weight=meta["hard_weight"],
    )


def _check_adaptation(golden: Golden, recorder: Recorder, method: AnoClipPlus) -> None:
    steps, count = recorder.steps, golden["loss"].shape
    soft, hard = (torch.cat([getattr(step, name) for step in steps]).view(count) for name in ("soft", "hard"))
    golden.near("loss_soft", soft, tolerance=SCORE, of="one")
    golden.near("loss_hard", hard, tolerance=SCORE, of="one")
    golden.near("loss", soft + method.hard_weight * hard, tolerance=SCORE, of="one")
    logits = torch.cat([step.logits[0] for step in steps])
    shown = torch.sigmoid(logits[..., ::16, ::16] if golden.meta["width"] else logits)
    shown = shown.reshape(golden["step_prob"].shape)
    golden.near("step_prob", shown, tolerance=ADAPTED_SPAN[method.adapter], of="span")

    noise, weight, bias = (recorder.all_drawn(what) for what in ("noise", "weight", "bias"))
    golden.near("noise", noise.view(golden["noise"].shape), tolerance=DRAWN)
    golden.near("ad_weight_init_head", weight[:, :3], tolerance=DRAWN)
    golden.near("ad_bias_init", bias, tolerance=DRAWN)


def _check_adapted_tokens(golden: Golden, recorder: Recorder, observer: AnoClipPlusObserver) -> None:
    """Compare the adapters after the last step of each image, and the tokens they give."""
    last = recorder.steps[observer.method.steps - 1 :: observer.method.steps]
    _, tokens = observer.dual_path(batch_of(golden.meta))
    shape = golden["adapted_tokens"].shape
    found = [
        observer.mix(own, step.weight, step.bias, observer.bank(category))
        for own, step, category in zip(
            tokens.view(len(last), 1, -1, shape[-1]), last, golden.meta["classes"], strict=True
        )
    ]
    heads, biases = torch.cat([step.weight[:, :3] for step in last]), torch.cat([step.bias for step in last])
    golden.near("ad_weight_final_head", heads, tolerance=LEARNED)
    golden.near("ad_bias_final", biases, tolerance=LEARNED)
    golden.near("adapted_tokens", torch.cat(found).view(shape), tolerance=LEARNED)
