"""Checks of the AnoCLIP+ arrays: losses, adapters and adapted maps of the authors' test-time adaptation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from methods.anoclip import box_mean
from methods.anoclip_plus import AnoClipPlus, AnoClipPlusObserver, Step
from tests.checkers.anoclip import SCORE, Arrays, batch_of, check_encoding, clip_of, words_of
from tests.checkers.anoclip import method_of as plain_method_of
from tests.kit import tiny
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.maps import exact_maps

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
    """Compare one file with this implementation: what AnoCLIP has too, then the adaptation and its maps."""
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    arrays = {key: golden[key] for key in golden.files if key != "meta"}
    method, batch, recorder = method_of(meta), batch_of(meta), Recorder(meta["tag"])
    prepared = method.prepare(clip_of(meta), words_of(meta, plain_method_of(meta)))
    observer = dataclasses.replace(prepared, draw=recorder.draw, watch=recorder.watch)
    with torch.inference_mode():
        check_encoding(arrays, meta)
        evidence = {**observer.observe(batch), "frame": batch.frame}
    _check_adaptation(arrays, meta, recorder, method)
    _check_adapted_tokens(arrays, meta, recorder, observer)
    _check_maps(arrays, meta, method, evidence)


def method_of(meta: Arrays) -> AnoClipPlus:
    """Return the method with the parameters that the arrays state."""
    return AnoClipPlus(
        Backbone(meta["config"], "random", "quick_gelu" if meta["quick_gelu"] else "gelu"),
        Preprocess(meta["size"], interpolation="bilinear", tiles="ends" if meta["width"] else "none"),
        adapter=meta["adapter"],
        steps=meta["epochs"],
        lr=meta["lr"],
        weight_decay=meta["weight_decay"],
        noise=meta["noise_std"],
        residual=meta["residual"],
        hard_weight=meta["hard_weight"],
    )


def _check_adaptation(arrays: Arrays, meta: Arrays, recorder: Recorder, method: AnoClipPlus) -> None:
    steps, count = recorder.steps, arrays["loss"].shape
    soft, hard = (torch.cat([getattr(step, name) for step in steps]).view(count) for name in ("soft", "hard"))
    tiny.near("loss_soft", soft, arrays["loss_soft"], SCORE, of="one")
    tiny.near("loss_hard", hard, arrays["loss_hard"], SCORE, of="one")
    tiny.near("loss", soft + method.hard_weight * hard, arrays["loss"], SCORE, of="one")
    logits = torch.cat([step.logits[0] for step in steps])
    shown = torch.sigmoid(logits[..., ::16, ::16] if meta["width"] else logits)
    wanted = arrays["step_prob"]
    tiny.near("step_prob", shown.reshape(wanted.shape), wanted, ADAPTED_SPAN[method.adapter], of="span")

    noise, weight, bias = (recorder.all_drawn(what) for what in ("noise", "weight", "bias"))
    tiny.near("noise", noise.view(arrays["noise"].shape), arrays["noise"], DRAWN)
    tiny.near("ad_weight_init_head", weight[:, :3], arrays["ad_weight_init_head"], DRAWN)
    tiny.near("ad_bias_init", bias, arrays["ad_bias_init"], DRAWN)


def _check_adapted_tokens(
    arrays: Arrays, meta: Arrays, recorder: Recorder, observer: AnoClipPlusObserver
) -> None:
    """Compare the adapters after the last step of each image, and the tokens they give."""
    last = recorder.steps[observer.method.steps - 1 :: observer.method.steps]
    _, tokens = observer.dual_path(batch_of(meta))
    shape = arrays["adapted_tokens"].shape
    found = [
        observer.mix(own, step.weight, step.bias, observer.bank(category))
        for own, step, category in zip(
            tokens.view(len(last), 1, -1, shape[-1]), last, meta["classes"], strict=True
        )
    ]
    heads, biases = torch.cat([step.weight[:, :3] for step in last]), torch.cat([step.bias for step in last])
    tiny.near("ad_weight_final_head", heads, arrays["ad_weight_final_head"], LEARNED)
    tiny.near("ad_bias_final", biases, arrays["ad_bias_final"], LEARNED)
    tiny.near("adapted_tokens", torch.cat(found).view(shape), arrays["adapted_tokens"], LEARNED)


def _check_maps(arrays: Arrays, meta: Arrays, method: AnoClipPlus, evidence: Mapping[str, Tensor]) -> None:
    tolerance = ADAPTED_SPAN[method.adapter]
    tiny.near("prob_low", evidence["map"], arrays["prob_low"], tolerance, of="span")
    tiny.near("prob_smooth", box_mean(evidence["map"]), arrays["prob_smooth"], tolerance, of="span")
    score = method.image_scores(evidence, torch.zeros(len(meta["classes"]), 2))
    tiny.near("image_score", score, arrays["image_score"], SCORE, of="one")
    for exact in (False, True):
        with exact_maps(exact):
            maps = method.maps(evidence, (meta["size"], meta["width"] or meta["size"]))
        tiny.near(f"map (exact: {exact})", maps, arrays["map"], tolerance, of="span")
