"""Mean and deviation of colour follow the weights; digests of OpenAI's stay what they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zsadbench.clip.downloads import tags
from zsadbench.clip.normalisation import OPENAI, normalisation
from zsadbench.clip.weights import architectures
from zsadbench.errors import WeightsError
from zsadbench.files import digest_of
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import Prepared
from zsadbench.inputs import OPENAI_MEAN, OPENAI_STD, Backbone, Preprocess
from zsadbench.method import load_method, resolve

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LAION = Backbone("ViT-L-14", "laion2b_s32b_b82k")


def test_a_tag_has_what_it_is_published_with() -> None:
    assert normalisation(LAION) == HALF
    for tag in ("openai", "datacomp_xl_s13b_b90k", "random:3"):
        assert normalisation(Backbone("ViT-L-14", tag)) == OPENAI


def test_every_published_tag_agrees_with_open_clip() -> None:
    from open_clip import pretrained

    for name in architectures():
        for tag in tags(name):
            cfg = pretrained.get_pretrained_cfg(name, tag)
            told = tuple(cfg.get("mean") or OPENAI_MEAN), tuple(cfg.get("std") or OPENAI_STD)
            assert normalisation(Backbone(name, tag)) == told, (name, tag)


def test_a_method_takes_that_of_its_weights_into_its_parameters() -> None:
    found = resolve("clip", backbone=LAION.name, weights=LAION.weights)
    assert found.method.preprocess.normalisation == found.inductive.preprocess.normalisation == HALF
    assert found.parameters["preprocess"]["mean"] == found.parameters["preprocess"]["std"] == [0.5] * 3
    own = resolve("clip", backbone=LAION.name, weights=LAION.weights, settings={"mean": "0.1,0.2,0.3"})
    assert own.method.preprocess.normalisation == ((0.1, 0.2, 0.3), HALF[1])
    assert load_method("clip").preprocess.normalisation == OPENAI


@pytest.mark.parametrize(
    ("spec", "digest"),
    [("clip", "dc438df39b1a"), ("winclip", "d33e62609553"), ("anoclip", "e4bff4d5d5d0")],
)
def test_what_was_observed_with_openais_values_keeps_its_digest(spec: str, digest: str) -> None:
    """Digests of the parameters as records of before hold them."""
    assert digest_of(resolve(spec).parameters).startswith(digest)


def test_a_file_has_what_the_published_weights_agree_on(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    assert normalisation(Backbone("ViT-L-14", str(file), "quick_gelu")) == OPENAI
    assert normalisation(Backbone("ViT-B-16", str(file))) == OPENAI
    assert normalisation(Backbone("ViT-L-14", str(file))) == OPENAI  # loading asks for the activation first
    with pytest.raises(WeightsError, match=r"does not say which; state them: .*--set mean=0\.5,0\.5,0\.5"):
        normalisation(Backbone("ViT-L-14", str(file), "gelu"))
    stated = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
    found = resolve("clip", backbone="ViT-L-14", weights=str(file), activation="gelu", settings=stated)
    assert found.method.preprocess.normalisation == HALF


def test_an_architecture_file_may_state_it(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    assert normalisation(Backbone(str(path), "random")) == (HALF[0], (0.25, 0.25, 0.25))
    path.write_text("{")
    assert normalisation(Backbone(str(path), "random")) == OPENAI


def test_images_are_normalised_by_it() -> None:
    """A grey of one half is 0 for weights of 0.5 and 0.5; a bare declaration is OpenAI's."""
    pixels = np.full((1, 4, 4, 3), 255, np.uint8)
    prepared = [Prepared(pixels, np.zeros((1, 4), np.int64), np.array([4, 4]))]

    def white(spec: Preprocess) -> Tensor:
        return to_batch_images(prepared, spec)[0, 0, :, 0, 0]

    assert white(Preprocess(4, mean=HALF[0], std=HALF[1])).tolist() == [1, 1, 1]
    expected = (1 - torch.tensor(OPENAI_MEAN)) / torch.tensor(OPENAI_STD)
    torch.testing.assert_close(white(Preprocess(4)), expected)
