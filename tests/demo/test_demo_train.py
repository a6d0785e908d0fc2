"""Training of the miniature CLIP: its losses, and that an interrupted training ends at the same weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from methods.winclip import embed_windows, window_index
from zsadbench.demo.batches import pairs
from zsadbench.demo.losses import WEIGHTS, balanced, losses, mistold, several_positives, unseen
from zsadbench.demo.student import FELT, GUIDED, Student, attend, normalised
from zsadbench.demo.train import Recipe
from zsadbench.errors import UsageError, WeightsError

training: Any = import_module("zsadbench.demo.train")


@pytest.fixture(scope="module")
def student() -> Student:
    return Student(0)


def test_the_written_out_attention_is_that_of_the_towers(student: Student) -> None:
    block = student.vision.blocks[0]
    q, k, v = block.qkv(torch.randn(2, 5, student.vision.width))
    assert torch.allclose(attend(block, q, k, v)[0], block.attend(q, k, v), atol=1e-6)


def test_one_walk_gives_the_class_feature_and_the_value_value_stream(student: Student) -> None:
    images = torch.randn(2, 3, 96, 96)
    feature, local, gaze = student.see(images)
    x = student.vision.embed(images)
    assert torch.allclose(feature, student.vision.encode(x), atol=1e-5)
    total = x
    for block in student.vision.blocks:
        v = block.qkv(x)[2]
        total, x = total + block.attend(v, v, v), block(x)
    assert torch.allclose(local, student.vision.project(total[:, 1:]), atol=1e-5)
    assert gaze.shape == (2, GUIDED, 144)
    assert (gaze.sum(dim=2) < 1).all() and (gaze > 0).all()  # the rest is attention to itself


def test_texts_are_read_as_the_text_tower_does(student: Student) -> None:
    texts = ["a photo of a normal gear", "damaged", "a very old photo of a broken key on a table"]
    tokens = student.tokenizer(texts, student.text.context)
    assert torch.allclose(student.read(texts), student.text.encode(tokens), atol=1e-4)


def test_all_features_start_in_one_narrow_cone_with_a_scale_of_100(student: Student) -> None:
    batch = pairs(3, 0, 0)
    with torch.inference_mode():
        image, local, _ = student.see(normalised(batch.images))
        features = [image, local.flatten(0, 1), student.read(batch.texts)]
    centres = F.normalize(torch.stack([F.normalize(f, dim=-1).mean(dim=0) for f in features]), dim=-1)
    assert float((centres @ centres.T).min()) > 1 - FELT / 100 - 0.1
    assert float(student.model.logit_scale.exp()) == pytest.approx(100)
    assert not [p for p in student.learning if p is student.model.logit_scale]


def test_windows_are_looked_at_as_winclip_does(student: Student) -> None:
    images = torch.randn(2, 3, 96, 96)
    windows = window_index((12, 12), 3)[[7, 50]]
    clip: Any = SimpleNamespace(vision=student.vision)
    wanted = embed_windows(clip, student.vision.embed(images), windows)
    assert torch.allclose(student.peep(images, windows.expand(2, -1, -1)), wanted, atol=1e-5)


def test_several_positives_share_the_probability() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    fits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    whole = np.log(np.exp(2) + 2)
    assert float(several_positives(logits, fits)) == pytest.approx(
        ((whole - 2 + whole) / 2 + np.log(3)) / 2, rel=1e-6
    )


def test_both_classes_of_patches_weigh_the_same() -> None:
    margin = torch.tensor([[1.0, -2.0, -2.0, -2.0, 9.0]])
    share = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.1]])  # the last is neither
    wanted = (F.softplus(torch.tensor(-1.0)) + F.softplus(torch.tensor(-2.0))) / 2
    assert float(balanced(margin, share)) == pytest.approx(float(wanted), rel=1e-6)


def test_attention_is_counted_where_the_fault_is() -> None:
    gaze = torch.tensor([[[0.5, 0.25, 0.1]], [[0.2, 0.2, 0.2]]])
    share = torch.tensor([[0.9, 0.2, 0.0], [0.0, 0.0, 0.0]])  # the second picture is sound
    assert float(unseen(gaze, share)) == pytest.approx(-np.log(0.75 + 1e-4), rel=1e-6)


def test_a_word_that_is_true_should_win() -> None:
    margin = torch.tensor([[2.0, 5.0], [-1.0, 5.0]])  # second word less first
    says = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    wanted = (F.softplus(torch.tensor(2.0)) + F.softplus(torch.tensor(1.0))) / 2
    assert float(mistold(margin, says)) == pytest.approx(float(wanted), rel=1e-6)
    assert float(mistold(margin, torch.zeros(2, 2))) == 0


def test_there_is_a_weight_for_each_term(student: Student) -> None:
    terms = losses(student, pairs(2, 0, 0), torch.float32)
    assert terms.shape == (len(WEIGHTS),)
    assert 0 <= float(terms[-1].detach()) <= 1  # a squared cosine


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    recipe = Recipe(100_000, rate=1.0, warm=1000, decay=0.5)
    rates = [recipe.rate_at(n) for n in (0, 500, 1000, 50_000, 75_000, 100_000)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.5, 0])


def test_losses_fall_when_a_batch_is_repeated() -> None:
    student = Student(1)
    optimiser = training.optimiser_of(student, 3e-4)
    batch = pairs(2, 0, 0)
    seen = []
    for _ in range(9):
        terms = losses(student, batch, torch.float32)
        grads = torch.autograd.grad(terms.sum(), student.learning)
        training.update(student, optimiser, [list(grads)], 3e-4)
        seen.append(float(terms.detach().sum()))
    assert seen[-1] < 0.8 * seen[0]


def test_an_interrupted_training_ends_at_the_same_weights(tmp_path: Path) -> None:
    recipe = Recipe(images=24, shards=2, pairs=2, warm=4)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert training.train(recipe, whole)
    assert not training.train(recipe, parts, seconds=0)
    assert not training.train(recipe, parts, seconds=0, resume=True)
    assert training.train(recipe, parts, resume=True)
    assert whole.read_bytes() == parts.read_bytes()
    assert not list(tmp_path.glob("*.resume"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_second_stage_teaches_the_text_tower_alone(tmp_path: Path) -> None:
    recipe = Recipe(images=4, shards=1, pairs=2, more=3)
    student = Student(0)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    with ThreadPoolExecutor(1) as pool:
        training.connote(student, recipe, pool, torch.float32, 120, print)
    after = student.model.state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    halves = {name for name, value in after.items() if torch.equal(value, before[name].half().float())}
    assert {name for name in after if name.startswith("visual.")} <= halves
    assert "logit_scale" in same
    assert {
        "token_embedding.weight",
        "text_projection",
        "transformer.resblocks.8.mlp.c_fc.weight",
    }.isdisjoint(same | halves)


def test_weights_that_exist_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_text("an hour of work")
    with pytest.raises(UsageError, match="exists already; go on with --resume"):
        training.train(Recipe(images=4), tmp_path / "mine.safetensors")
    with pytest.raises(UsageError, match=r"weights are a \.safetensors file"):
        training.train(Recipe(images=4), tmp_path / "mine.pt")


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="without --resume"):
        training.train(Recipe(images=4), tmp_path / "none.safetensors", resume=True)
