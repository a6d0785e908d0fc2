"""The baseline against open_clip's own features."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.clip import PlainClip
from tests.kit import tiny, tiny_clip
from zsadbench.clip.towers import load_clip
from zsadbench.errors import MethodError
from zsadbench.inputs import OPENAI_MEAN, OPENAI_STD, Backbone, Preprocess
from zsadbench.method.protocol import Evidence
from zsadbench.method.registry import resolve

METHOD = PlainClip(Backbone("tiny-l14", "random"), Preprocess(84))
WORDS = {"nut": "metal nut", "cable": "cable"}


def observe(images: Tensor, categories: list[str]) -> Evidence:
    with torch.inference_mode():
        return METHOD.prepare(tiny.clip("tiny-l14"), WORDS).observe(tiny.batch(images, categories))


@torch.inference_mode()
def test_probabilities_are_those_of_open_clip() -> None:
    model = open_clip.model.CLIP(**tiny_clip.CONFIGS["tiny-l14"]).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tiny_clip.state_dict("tiny-l14").items()})
    model.visual.output_tokens = True
    images = tiny.images(0, 2, 84)
    pooled, tokens = model.visual(images)
    features = torch.cat([pooled[:, None], tokens @ model.visual.proj], dim=1)  # after ln_post
    tokenize = open_clip.get_tokenizer("ViT-L-14")
    evidence = observe(images, ["nut", "cable"])
    for image, words in enumerate(("metal nut", "cable")):
        prompts = [f"a photo of {state} {words}" for state in ("a normal", "an anomalous")]
        texts = F.normalize(model.encode_text(tokenize(prompts)), dim=-1)
        p = (100 * F.normalize(features[image], dim=-1) @ texts.T).softmax(dim=-1)[:, 1]
        assert torch.allclose(evidence["score"][image], p[0], atol=1e-4)
        assert torch.allclose(evidence["map"][image], p[1:].view(6, 6), atol=1e-4)


def test_maps_are_bilinear_and_the_score_is_the_class_token() -> None:
    evidence = observe(tiny.images(0, 2, 84), ["nut", "nut"])
    wanted = F.interpolate(evidence["map"][:, None], (30, 40), mode="bilinear")[:, 0]
    assert torch.allclose(METHOD.maps(evidence, (30, 40)), wanted, atol=1e-5)
    assert torch.equal(METHOD.image_scores(evidence, torch.zeros(2, 2)), evidence["score"])


def test_a_frame_need_not_be_square() -> None:
    assert observe(tiny.images(0, 1, 84)[..., :56, :], ["nut"])["map"].shape == (1, 4, 6)


def test_a_category_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(MethodError, match="category 'zipper' was not prepared; prepared: nut, cable"):
        observe(tiny.images(0, 1, 84), ["zipper"])


def test_the_ensemble_variant_has_22_templates_and_11_states() -> None:
    method = resolve("clip@ac").method
    assert isinstance(resolve("clip").parameters, dict)
    fields = vars(method)
    assert [len(fields[name]) for name in ("normal", "anomalous", "templates")] == [7, 4, 22]
    assert method.backbone == Backbone("ViT-L-14-336", "openai", "quick_gelu")
    assert method.preprocess == Preprocess(518, mean=OPENAI_MEAN, std=OPENAI_STD)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_evidence(dtype: torch.dtype) -> None:
    observer = METHOD.prepare(load_clip(METHOD.backbone, dtype=dtype), WORDS)
    evidence = observer.observe(tiny.batch(tiny.images(0, 1, 84), ["nut"]))
    assert {value.dtype for value in evidence.values()} == {torch.float32}
