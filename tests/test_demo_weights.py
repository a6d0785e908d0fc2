"""The shipped miniature CLIP: it knows states, of things it has never seen, and looks in the right place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import zsadbench
from zsadbench.demo import data, probe
from zsadbench.demo.factory import HELD_OUT
from zsadbench.demo.train import Student, normalised

WEIGHTS = Path(zsadbench.__file__).parent / "backbones" / "demo.safetensors"
NEUTRAL = (("red", "blue"), ("small", "large"), ("old", "new"), ("wooden", "plastic"), ("shiny", "dull"))


@pytest.fixture(scope="module")
def student() -> Student:
    student = Student(0)
    state = {key: value.float() for key, value in load_file(WEIGHTS).items()}
    assert set(student.model.load_state_dict(state, strict=False).missing_keys) <= {"attn_mask"}
    return student


@pytest.fixture(scope="module")
def pictures() -> dict[str, tuple[Tensor, list[bool]]]:
    shown = {category: data.pictures(category, 0) for category in HELD_OUT}
    return {
        name: (normalised(np.stack([p.image for p in found])), [p.fault != "good" for p in found])
        for name, found in shown.items()
    }


def image_auroc(
    student: Student, pictures: dict[str, tuple[Tensor, list[bool]]], normal: str, anomalous: str
) -> float:
    from sklearn.metrics import roc_auc_score

    found = []
    with torch.inference_mode():
        for category, (images, labels) in pictures.items():
            words = category.replace("_", " ")
            texts = F.normalize(student.read([s.format(words) for s in (normal, anomalous)]), dim=-1)
            features = F.normalize(student.see(images)[0], dim=-1)
            found.append(roc_auc_score(labels, features @ (texts[1] - texts[0])))
    return float(np.mean(found))


def test_it_is_small_and_in_half_precision() -> None:
    assert WEIGHTS.stat().st_size < 8e6
    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}


def test_words_for_states_find_faults_and_other_words_do_not(
    student: Student, pictures: dict[str, tuple[Tensor, list[bool]]]
) -> None:
    first = {name: pictures[name] for name in ("comb", "wood", "toy_block", "terrazzo")}
    assert image_auroc(student, first, "a photo of a flawless {}", "a photo of a damaged {}") > 0.8
    neutral = [
        image_auroc(student, first, f"a photo of a {a} {{}}", f"a photo of a {b} {{}}") for a, b in NEUTRAL
    ]
    assert abs(np.mean(neutral) - 0.5) < 0.2


def test_value_value_attention_localises_better_than_plain_tokens(student: Student) -> None:
    with torch.inference_mode():
        rows = np.array([probe.aurocs(student, category) for category in ("comb", "wood", "terrazzo")])
    _, plain, local = rows.mean(axis=0)
    assert local > 0.85
    assert local > plain + 0.03
