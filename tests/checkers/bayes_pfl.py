"""Checks of the Bayes-PFL arrays: every file states in ``meta`` what it was made from and holds its draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from methods._bayes_prompts import (
    SIDES,
    Drawn,
    context_bias,
    context_flow,
    encode_texts,
    state_bias,
    tokens_of,
    word_tokens,
)
from methods._training_bayes_pfl import Chance, FlowRecipe, dice, divergence, focal, orthogonality
from methods.bayes_pfl import (
    MINMAX_EPSILON,
    BayesPfl,
    BayesPflObserver,
    asked,
    checkpoint_shapes,
    class_logits,
    differences,
    fused,
    patch_tokens,
    probability,
    projected,
)
from methods.clip_ad import layer_maps, minmax
from tests.checkers.common import (
    Golden,
    Meta,
    begin,
    drawn_batch,
    mask_of,
    opened,
    padded,
    prepared,
    run_pictures,
)
from tests.kit import tiny
from zsadbench.clip.towers import Clip
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.metrics import evaluate
from zsadbench.metrics.image import image_metrics
from zsadbench.training.stages import Features, Stage, Truth
from zsadbench.training.variations import composed

TOLERANCE, LOOSER = 2e-5, 5e-5
METRICS = (
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_iou",
    "image_auroc",
    "image_ap",
    "image_f1max",
)
WORDS = {"metal_nut": "metal nut", "pipe_fryum": "pipe fryum", "chewinggum": "chewing gum"} | {
    **dict.fromkeys(("macaroni1", "macaroni2"), "macaroni"),
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), "printed circuit board"),
}


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, LOOSER if "end2end" in path.stem else TOLERANCE) as golden:
        golden.hand_to(golden.word(1), _infer, _losses, _train, _preprocess, _end2end)


def words(classes: Sequence[str]) -> dict[str, str]:
    """Return the words of each class, as the authors' table and our descriptions have them."""
    return {name: WORDS.get(name, name) for name in classes}


def spread(name: str, shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a learned tensor in the files; temperatures have the mean 4."""
    if name.startswith("temperature"):
        return 0.2
    if name.startswith("prompt_") or name.endswith(".state"):
        return 1.0
    if name.endswith(("amor_b", ".bias")):
        return 1.0 if name.startswith("RCA") else 0.1
    if ".amor_u" in name or ".amor_w" in name:
        size = 0.3 if ".amor_u" in name else 0.1
        return size * shape[1] ** -0.5 if name.endswith(".weight") else size
    return (100.0 if name == "RCA.q_proj_pre.weight" else 1.0) * float(shape[1] ** -0.5)


def learned(method: BayesPfl, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    return {
        name: tiny.draw(
            name, shape, spread(name, shape), 4.0 * name.startswith("temperature"), salt=meta["extras_salt"]
        )
        for name, shape in checkpoint_shapes(method, clip).items()
    }


def setup(meta: Meta, **fields: Any) -> tuple[BayesPfl, Clip, dict[str, Tensor]]:
    """Return method, CLIP and learned parameters of a file."""
    assert meta["position"].split(",")[:2] == ["bicubic", " antialias"]
    backbone = Backbone(meta["config"], "random", meta["activation"])
    given = {
        "prompts": meta["prompt_num"],
        "context": meta["prompt_context_len"],
        "state": meta["prompt_state_len"],
        "flows": meta["num_flows"],
        "draws": meta["sample_num"],
        "features": tuple(meta["features_list"]),
        "sigma": float(meta["sigma"]),
        "weight": meta["alpha"],
        "stage": meta.get("stage", 2),
    }
    method = BayesPfl(
        **(given | fields), backbone=backbone, preprocess=Preprocess(meta["size"]), checkpoint=""
    )
    clip = tiny.clip(meta["config"], meta["activation"])
    return method, clip, learned(method, clip, meta)


def with_draws(
    observer: BayesPflObserver, context: Mapping[str, NDArray[Any]], state: NDArray[Any]
) -> BayesPflObserver:
    """Return ``observer`` with stored draws: ``context`` (R, E) by image key, ``state`` (2, R, E)."""

    def draw(key: str, what: str, number: int) -> Tensor:
        rows = context[key] if what == "context" else state[SIDES.index(what)]
        return torch.from_numpy(rows[number])

    return dataclasses.replace(observer, draw=draw)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = setup(meta)
    batch = drawn_batch(meta["image_seed"], meta["classes"], meta["size"])
    observer = prepared(method, "bayes-pfl", clip, tensors, words(meta["classes"]))
    _draws_in_sequence(golden)
    stored = dict(zip(batch.keys, golden["eps_context"], strict=True))
    observer = with_draws(observer, stored, golden["eps_state"])
    tokens = tokens_of(meta["classes"], observer.words)
    golden.same("tokens", padded(tokens, golden["tokens"].shape[1]))

    trace = clip.vision.trace(batch)
    image, patches = clip.vision.project(trace.output[:, 0]), patch_tokens(method, trace)
    golden.near("image_feature", image)
    context = context_bias(tensors, image, observer.noise("context", batch.keys))
    _check_biases(golden, tensors, image, context)
    texts = encode_texts(clip, tensors, tokens, context.end, observer.state)
    pairs = torch.unflatten(texts, 2, (-1, method.prompts))
    golden.near("text_feature", pairs[:, :, golden["draw_index"]])
    _check_scores(golden, method, tensors, texts, image, patches)
    _check_patches(golden, method, tensors, texts[:1], [own[:1] for own in patches])

    evidence, size = observer.observe(batch), (meta["size"], meta["size"])
    golden.near("image_prob_stage2", evidence["score"])
    assert meta["top_k"] == [observer.pixels(name) for name in meta["classes"]]
    golden.near("top_mean", evidence["top"])
    raw = dataclasses.replace(method, sigma=0.0)
    golden.near_maps("raw_map_strided", lambda: raw.maps(evidence, size)[:, ::2, ::2])
    golden.near_maps("final_map_strided", lambda: method.maps(evidence, size)[:, ::3, ::3])


def _draws_in_sequence(golden: Golden) -> None:
    """Repeat the authors' one stream of random numbers, which ours do not follow."""
    count, draws, width = golden["eps_context"].shape
    own = torch.Generator().manual_seed(golden.meta["draw_seed"])
    stream = torch.stack([torch.randn(1, width, generator=own)[0] for _ in range(count * 3 * draws)])
    of_image = stream.view(count, 3, draws, width)
    golden.same("eps_context", of_image[:, 0])
    golden.same("eps_state", of_image[0, 1:])


def _check_biases(golden: Golden, tensors: Mapping[str, Tensor], image: Tensor, context: Drawn) -> None:
    flow, shown = context_flow(tensors, image), golden["draw_index"]
    golden.near("context_u", flow.u[0, [0, -1]])
    golden.near("context_w", flow.w[0, [0, -1]])
    golden.near("context_b", flow.b)
    state = state_bias(tensors, golden.tensor("eps_state"))
    for name, found in (("context", context), ("state", state)):
        golden.near(f"{name}_mean", found.mean)
        golden.near(f"{name}_var", found.var)
        golden.near(f"{name}_zk", found.end)
    golden.near("context_z0", context.start[:, shown])


def _check_scores(
    golden: Golden,
    method: BayesPfl,
    tensors: Mapping[str, Tensor],
    texts: Tensor,
    image: Tensor,
    patches: Sequence[Tensor],
) -> None:
    def unit(name: str, x: Tensor) -> Tensor:
        return F.normalize(F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]), dim=-1)

    last = int(golden["draw_index"][-1])
    mapped = torch.unflatten(unit("class_mapping", texts[0]), 1, (-1, method.prompts))
    golden.near("class_text", mapped[:, last : last + 1])
    pooled = fused(tensors, patches)
    golden.near("fuse_feature", pooled)
    golden.near("image_projected", unit("image_mapping", image + pooled))
    for number in (1, 2):
        staged = dataclasses.replace(method, stage=number)
        logits = class_logits(staged, tensors, texts, image, patches)
        golden.near(f"class_logit_stage{number}", logits, tolerance=LOOSER)
        golden.near(f"image_prob_stage{number}", probability(logits))


def _check_patches(
    golden: Golden,
    method: BayesPfl,
    tensors: Mapping[str, Tensor],
    texts: Tensor,
    patches: Sequence[Tensor],
) -> None:
    """Compare what the first image's patches and texts make of each other."""
    shown, last = golden["patch_index"], int(golden["draw_index"][-1])
    golden.near("patch_stream", torch.cat(list(patches))[:, shown])
    unit = [projected(tensors, number, tokens) for number, tokens in enumerate(patches)]
    golden.near("patch_projected", torch.cat(unit)[:, shown])
    answers = torch.cat([asked(method, tensors, own, texts) for own in unit])
    pairs = torch.unflatten(answers, 2, (-1, method.prompts))
    golden.near("rca_text", pairs[:, :, last : last + 1, :2])
    logits = differences(method, tensors, patches, texts)
    golden.near("pair_logit", logits[0], tolerance=LOOSER)
    side, size = round(logits.shape[-1] ** 0.5), (golden.meta["size"], golden.meta["size"])
    maps = layer_maps(torch.unflatten(logits[0], -1, (side, side)), size).mean(dim=1)
    golden.near("layer_map_strided", maps[:, ::5, ::5])


def _losses(golden: Golden) -> None:
    """Compare the losses of random inputs, and the gradients of their sum."""
    golden = dataclasses.replace(golden, tolerance=2e-6)
    names = [key.removeprefix("grad_") for key in golden.arrays if key.startswith("grad_")]
    inputs = {name: golden.tensor(name).requires_grad_() for name in names}
    masks, logits = golden.tensor("mask").float(), inputs["logits"]
    differences = (logits[:, :, 1] - logits[:, :, 0]).unbind()
    parts = {
        "focal": torch.stack([focal(one, masks) for one in differences]),
        "dice": torch.stack([dice(one.sigmoid(), masks) for one in differences]),
        "orthogonal": orthogonality(torch.unflatten(inputs["text"], 1, (2, -1))),
        "cross_entropy": F.cross_entropy(inputs["class_logits"], golden.tensor("label")),
        "kl_context": divergence(_given(inputs, "context")).mean(),
        "kl_state": divergence(_given(inputs, "state"), share=len(masks)).mean(),
    }
    for name, value in parts.items():
        golden.near(name, value.detach())
    golden.near("focal_empty", focal(differences[0][2:], masks[2:]).detach())
    weights = {name: 0.01 if name.startswith("kl") else 1.0 for name in parts}
    whole = torch.stack([weights[name] * value.sum() for name, value in parts.items()]).sum()
    golden.near("total", whole.detach())
    for name, found in zip(names, torch.autograd.grad(whole, [*inputs.values()]), strict=True):
        golden.near(f"grad_{name}", found)


def _given(inputs: Mapping[str, Tensor], kind: str) -> Drawn:
    mean, var, start, end, logdet = (
        inputs[f"{kind}_{name}"] for name in ("mean", "var", "z0", "zk", "logdet")
    )
    return Drawn(mean, var, start[:, None], end[:, None], logdet[:, None])


RATES = ("prompt_lr", "temperature_lr", "flow_lr", "lr")
UNSURE = "fuse.compress.bias"
"""It moves all patches of a softmax alike: its gradient is rounding, which Adam makes large."""


def _train(golden: Golden) -> None:
    """Repeat the authors' steps: stage 1, the weights of its best epoch put back, stage 2."""
    meta = golden.meta
    method, clip, start = setup(meta)
    turn, epoch = meta["first_step_of_stage2"], meta["batches"]
    scores = meta["validation_ap"][: turn // epoch]  # the last of the best is put back
    best = max(number for number, score in enumerate(scores, 1) if score == max(scores))

    class Stored(FlowRecipe):
        def chance(self, method: BayesPfl, clip: Clip, step: int, images: int) -> Chance:
            return _stored(golden, step + turn * (method.stage == 2))

    rates = dict(zip(RATES, meta["learning_rates"], strict=True))
    first = turn // epoch
    recipe = Stored(first, meta["epochs"] - first, meta["batch"], betas=tuple(meta["betas"]), **rates)
    stages = recipe.stages(method, clip, words(meta["classes"]))
    assert sorted(stages[0].parameters) == sorted(start)
    begin(stages[0], start)
    batches = _batches(golden, stages[0])
    kept: dict[str, Tensor] = {}
    for step in range(meta["steps"]):
        if step == turn:
            _check_state(golden, "stage1", stages[0], start)
            begin(stages[0], kept)
        stage = stages[step >= turn]
        stage.batches = epoch
        _check_losses(golden, recipe, method, clip, stages[0].parameters, batches[step % epoch], step)
        taken = stage.step(*batches[step % epoch])
        sharp = step == 0 or step >= turn
        golden.near("class", taken["class"], golden["class"][step], tolerance=1e-4 if sharp else 2e-3)
        _check_gradients(golden, stage, step, sharp)
        if step + 1 == epoch:
            _check_state(golden, "epoch1", stages[0], start)
        if step + 1 == best * epoch:
            kept = {name: value.detach().clone() for name, value in stage.parameters.items()}
    _check_state(golden, "end", stages[0], start)


def _stored(golden: Golden, step: int) -> Chance:
    context, normal, abnormal = (golden.tensor(f"eps_{name}")[step] for name in ("context", *SIDES))
    state = torch.stack([normal, abnormal])
    return Chance(context[:, None], state[:, None], int(golden["prompt_index"][step]))


def _batches(golden: Golden, stage: Stage) -> list[tuple[Features, Truth]]:
    """Return the batches of the file: its images, masks and labels, one batch behind the other."""
    meta, found = golden.meta, []
    images = tiny.images(meta["image_seed"], meta["batch"] * meta["batches"], meta["size"])
    for begins in range(0, len(images), meta["batch"]):
        own = slice(begins, begins + meta["batch"])
        with torch.no_grad():
            features = stage.features(tiny.batch(images[own], meta["classes"][own]))
        masks, labels = golden.tensor("masks")[own].float(), golden.tensor("anomaly")[own]
        found.append((features, Truth(masks, labels, meta["classes"][own])))
    return found


def _check_losses(
    golden: Golden,
    recipe: FlowRecipe,
    method: BayesPfl,
    clip: Clip,
    parameters: Mapping[str, Tensor],
    batch: tuple[Features, Truth],
    step: int,
) -> None:
    """Compare all losses before a step, of which the second stage minimises one."""
    second = step >= golden.meta["first_step_of_stage2"]
    staged = dataclasses.replace(method, stage=2 if second else 1)
    categories = batch[1].categories
    tokens = tokens_of(categories, word_tokens(method, clip, words(categories)))
    with torch.no_grad():
        found = recipe.losses(staged, clip, parameters, tokens, *batch, _stored(golden, step))
    layers = range(len(method.features))
    for name, keys in {
        "class": ["class"],
        "orthogonal": ["orthogonal"],
        "focal": [f"focal_{number}" for number in layers],
        "dice": [f"dice_{number}" for number in layers],
        "kl": ["kl_context", "kl_normal", "kl_abnormal"],
    }.items():
        values, wanted = [float(found[key]) for key in keys], np.atleast_1d(golden[name][step])
        golden.near(f"{name} of step {step}", values, wanted, tolerance=1e-4 if second or not step else 2e-3)


def _check_gradients(golden: Golden, stage: Stage, step: int, sharp: bool) -> None:
    """Compare the learning rates of a step and its gradients, none of what the optimiser does not move."""
    rates = [group["lr"] for group in stage.optimiser.param_groups]
    wanted = golden["lr"][step]
    golden.near(f"lr of step {step}", rates + [0.0] * (len(wanted) - len(rates)), wanted, tolerance=1e-6)
    moved = {name: value.grad for name, value in stage.parameters.items() if value.grad is not None}
    names = golden.meta["parameters"]
    norms = [float(moved[name].norm()) if name in moved and name != UNSURE else 0.0 for name in names]
    known = np.where([name == UNSURE for name in names], 0, golden["grad_norm"][step])
    golden.near(f"grad_norm of step {step}", norms, known, tolerance=1e-4 if sharp else 1e-2)
    kind = {0: "grad0/", golden.meta["first_step_of_stage2"]: "grad_stage2/"}.get(step)
    for key in [key for key in golden.arrays if kind and key.startswith(kind)]:
        golden.near(key, moved[key.partition("/")[2]], tolerance=1e-4)


def _check_state(golden: Golden, when: str, stage: Stage, start: Mapping[str, Tensor]) -> None:
    """Compare the parameters, and by how much each has changed from the start; 0 for what nothing uses."""
    after = {name: value.detach() for name, value in stage.parameters.items()}
    prefix = {"stage1": "stage1_after/", "end": "after/"}.get(when)
    for key in [key for key in golden.arrays if prefix and key.startswith(prefix)]:
        golden.near(key, after[key.partition("/")[2]], tolerance=1e-4, of="one")
    names = golden.meta["parameters"]
    known = [name in after and name != UNSURE for name in names]
    changes = [float((after[n] - start[n]).norm()) if k else 0.0 for n, k in zip(names, known, strict=True)]
    wanted = np.where([name == UNSURE for name in names], 0, golden[f"change_norm_{when}"])
    golden.near(f"change_norm_{when}", changes, wanted, tolerance=1e-3)


def _preprocess(golden: Golden) -> None:
    meta = golden.meta
    spec = Preprocess(meta["size"], mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    read = to_batch_images([preprocess(Image.fromarray(golden["image"]), spec)], spec)
    golden.near("tensor", read[0, 0], tolerance=1e-6)
    mask = mask_of(golden["mask"], (meta["size"], meta["size"]), "bilinear50")
    golden.same("mask_binary", mask, golden["mask_binary"][0] > 0)
    golden.same("mask_tensor", mask, golden["mask_tensor"][0] > 0.5)
    tiles = [
        (Image.fromarray(golden[f"mosaic_image_{n}"]), golden[f"mosaic_mask_{n}"] > 0)
        for n in meta["mosaic_order"]
    ]
    for kind in ("image", "mask"):
        golden.leave(f"mosaic_{kind}_")  # tiles are drawn with replacement: not every file is used
    image, mosaic = composed(tiles)
    golden.same("mosaic", np.asarray(image))
    golden.same("mosaic_mask", mosaic, golden["mosaic_mask"] > 0)


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = setup(meta)
    observer = prepared(method, "bayes-pfl", clip, tensors, words(meta["classes"]))
    classes = np.asarray(meta["class_of_image"])
    observer = with_draws(observer, _by_key(golden["eps_context"]), golden["eps_state"])
    found = run_pictures(golden, method, observer, meta["class_of_image"])
    golden.near("final_maps_strided", [found.maps[classes == name][0, ::2, ::2] for name in meta["classes"]])

    evidence = observer.observe(tiny.batch(found.inputs, list(classes)))
    golden.near("image_prob", evidence["score"])
    scores = {name: _scores(method, evidence, classes == name) for name in meta["classes"]}
    mixed = [name for name in meta["classes"] if name not in meta["all_anomalous"]]
    golden.near("image_scores", [scores[name] for name in mixed])
    rows = []
    for name in meta["classes"]:
        own = classes == name
        rows.append(_row(found.maps[own], found.masks[own], golden["labels"][own], scores[name]))
    assert meta["metrics"] == list(METRICS)
    golden.near("metrics", rows, tolerance=2e-3, of="one")
    golden.near("printed_mean", 100 * np.mean(rows, axis=0), tolerance=0.2, of="one")

    assert meta["headct_classes"] == mixed
    chosen = np.isin(classes, mixed)
    _headct(golden, observer, found.inputs[torch.from_numpy(chosen)], classes[chosen])


def _headct(golden: Golden, observer: BayesPflObserver, inputs: Tensor, classes: NDArray[np.str_]) -> None:
    """Compare the same pictures as a dataset without masks: the probability, which the code min-maxes."""
    own = golden.below("headct_")
    observer = with_draws(observer, _by_key(own["eps_context"]), golden["eps_state"])
    p = observer.observe(tiny.batch(inputs, list(classes)))["score"]
    own.near("image_prob", p)
    each = [minmax(p[torch.from_numpy(classes == name)], MINMAX_EPSILON) for name in dict.fromkeys(classes)]
    own.near("image_scores", torch.stack(each))
    labels = golden["labels"][np.isin(golden.meta["class_of_image"], classes)]
    rows = []
    for name in dict.fromkeys(classes):
        chosen = classes == name
        found = image_metrics(p.numpy()[chosen], labels[chosen])
        rows.append([100 * (found[key] or 0.0) for key in METRICS[-3:]])
    own.near("metrics", rows, tolerance=0.2, of="one")


def _by_key(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{number}.png": row for number, row in enumerate(rows)}


def _scores(method: BayesPfl, evidence: Mapping[str, Tensor], chosen: NDArray[np.bool_]) -> NDArray[Any]:
    rows = torch.from_numpy(chosen)
    own = {name: value[rows] for name, value in evidence.items()}
    return method.image_scores(own, torch.zeros(int(rows.sum()), 2)).numpy()


def _row(maps: NDArray[Any], masks: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> list[float]:
    """Return the metrics in the order of ``METRICS``, those of images 0 without a normal one, as theirs.

    Their IoU is that of the pixels above the threshold of the greatest F1, without those on it.
    """
    found = dict(evaluate(maps, masks, labels, scores))
    above = maps > np.float32(found["pixel_f1max_threshold"] or 0.0)
    found["pixel_iou"] = (above & masks).sum() / (above | masks).sum()
    defined = METRICS if not labels.all() else METRICS[:4]
    return [float(found[name] or 0.0) if name in defined else 0.0 for name in METRICS]
