"""The shipped miniature CLIP: it knows states, of things it has never seen, and looks in the right place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.stats import rankdata
from torch import Tensor

import zsadbench
from zsadbench.demo import data, probe
from zsadbench.demo.captions import ADJECTIVES
from zsadbench.demo.factory import HELD_OUT
from zsadbench.demo.student import Student, normalised

WEIGHTS = Path(zsadbench.__file__).parent / "clip" / "backbones" / "demo.safetensors"
UNRELATED = (
    ("red", "blue"), ("small", "large"), ("old", "new"), ("wooden", "plastic"), ("shiny", "dull"),
    ("round", "long"), ("wet", "dry"), ("warm", "cold"), ("heavy", "light"), ("thick", "thin"),
)  # fmt: skip
Seen = Mapping[str, tuple[Tensor, list[bool]]]


@pytest.fixture(scope="module")
def student() -> Student:
    student = Student(0)
    state = {key: value.float() for key, value in load_file(WEIGHTS).items()}
    assert set(student.model.load_state_dict(state, strict=False).missing_keys) <= {"attn_mask"}
    return student


@pytest.fixture(scope="module")
def seen(student: Student) -> Seen:
    """Unit image features of the demo set and its labels, by category."""
    found = {}
    for category in HELD_OUT:
        shown = data.pictures(category, 0)
        with torch.inference_mode():
            features = student.see(normalised(np.stack([picture.image for picture in shown])))[0]
        found[category] = (F.normalize(features, dim=-1), [picture.fault != "good" for picture in shown])
    return found


def read(student: Student, texts: list[str]) -> Tensor:
    """Return unit features (n, C) as the shipped text tower gives them: equal tokens, equal bits."""
    tokens = student.tokenizer(texts, student.text.context)
    return F.normalize(student.text.encode(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]), dim=-1)


def image_aurocs(student: Student, seen: Seen, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the image AUROC (categories, pairs) of texts with ``{}`` for the words of a category."""
    rows = []
    forms = sorted({text for pair in pairs for text in pair})  # each is read once, in however many pairs
    normal, anomalous = np.array([[forms.index(text) for text in pair] for pair in pairs]).T
    for category, (features, labels) in seen.items():
        words = category.replace("_", " ")
        with torch.inference_mode():
            texts = read(student, [form.format(words) for form in forms])
        ranks = rankdata((features @ (texts[anomalous] - texts[normal]).T).numpy(), axis=0)
        faults = sum(labels)
        above = ranks[labels].sum(axis=0) - faults * (faults + 1) / 2
        rows.append(above / (faults * (len(labels) - faults)))
    return np.array(rows)


def test_it_is_small_and_in_half_precision() -> None:
    state = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size <= 4.5e6
    assert {value.dtype for key, value in state.items() if key != "logit_scale"} == {torch.float16}


def test_its_scale_is_that_of_large_clips_and_texts_are_as_wide_as_what_they_meet() -> None:
    state = load_file(WEIGHTS)
    assert float(state["logit_scale"].exp()) == pytest.approx(100, abs=1e-4)
    width, joint = state["text_projection"].shape
    assert width == joint == state["visual.proj"].shape[1]


def test_probabilities_at_that_scale_do_not_saturate(student: Student, seen: Seen) -> None:
    with torch.inference_mode():
        texts = read(student, ["a photo of a normal thing", "a photo of an anomalous thing"])
    probability = torch.cat(
        [torch.softmax(100 * features @ texts.T, dim=-1)[:, 1] for features, _ in seen.values()]
    )
    assert (probability == 1).float().mean() < 0.02
    assert len(set(probability.tolist())) > 0.95 * len(probability)


def test_words_for_states_find_faults_in_every_category_and_no_category_is_solved(
    student: Student, seen: Seen
) -> None:
    reference = ("a photo of a normal {}", "a photo of an anomalous {}")
    other = ("a photo of a flawless {}", "a photo of a damaged {}")
    by_category, others = image_aurocs(student, seen, [reference, other]).T
    assert by_category.min() >= 0.6
    assert by_category.max() <= 0.99
    assert others.mean() > 0.8


def test_unrelated_words_find_nothing(student: Student, seen: Seen) -> None:
    texts = [(f"a photo of a {a} {{}}", f"a photo of a {b} {{}}") for a, b in UNRELATED]
    assert abs(image_aurocs(student, seen, texts).mean() - 0.5) <= 0.1


def test_no_ten_pairs_of_unrelated_words_find_anything(student: Student, seen: Seen) -> None:
    texts = [(f"a photo of a {a} {{}}", f"a photo of a {b} {{}}") for a, b in combinations(ADJECTIVES, 2)]
    each = image_aurocs(student, seen, texts).mean(axis=0)
    rng = np.random.default_rng(0)
    turned = np.where(rng.random((5000, 10)) < 0.5, 1, -1)  # which of the two words stands for "normal"
    draws = 0.5 + (turned * (rng.choice(each, (5000, 10)) - 0.5)).mean(axis=1)
    assert np.abs(draws - 0.5).max() <= 0.1 + 0.02
    assert (np.abs(draws - 0.5) <= 0.1).mean() >= 0.999


def test_words_it_does_not_know_are_one_word(student: Student, seen: Seen) -> None:
    pair = ("a photo of a musical {}", "a photo of a parliamentary {}")
    assert (image_aurocs(student, seen, [pair]) == 0.5).all()


def test_value_value_attention_localises_better_than_plain_tokens(student: Student) -> None:
    with torch.inference_mode():
        rows = np.array([probe.aurocs(student, category) for category in ("comb", "wood", "terrazzo")])
    _, plain, local = rows.mean(axis=0)
    assert local > 0.85
    assert local > plain + 0.03
