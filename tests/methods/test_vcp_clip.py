"""VCP-CLIP: what its variants change, its texts and answers, its training and its authors' files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods._training_vcp_clip import ContextRecipe
from methods.vcp_clip import VcpClip, asked, checkpoint_shapes, encode_texts, top_mean
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, load_checkpoint, save_checkpoint
from zsadbench.errors import MethodError, WeightsError
from zsadbench.method import Evidence, method_cards, resolve
from zsadbench.training import import_checkpoint

BACKBONE = "tiny-l14-e128"


def learned(chosen: VcpClip) -> dict[str, Tensor]:
    clip = tiny.clip(BACKBONE, "gelu")
    found = {name: tiny.draw(name, shape, 0.3) for name, shape in checkpoint_shapes(chosen, clip).items()}
    return found | {name: torch.tensor(2.6) for name in ("prompt_temp", "prompt_temp_l1")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vcp-clip") / "prompts.safetensors"
    save_checkpoint(path, learned(VcpClip()), Provenance("vcp-clip"))
    return path


def method(variant: str = "", checkpoint: Path | str = "", **settings: str) -> VcpClip:
    given = {"size": "84", "checkpoint": str(checkpoint), **settings}
    return cast(
        VcpClip, resolve(f"vcp-clip{variant}", backbone=BACKBONE, weights="random", settings=given).method
    )


def observe(chosen: VcpClip, tmp_path: Path) -> Evidence:
    path = tmp_path / "learned.safetensors"
    save_checkpoint(path, learned(chosen), Provenance("vcp-clip"))
    given = dataclasses.replace(chosen, checkpoint=str(path))
    observer = given.prepare(tiny.clip(BACKBONE, "gelu"), {"any": "any"})
    return observer.observe(tiny.batch(tiny.images(5, 3, 84), ["any"] * 3))


def test_every_variant_changes_what_its_summary_says(tmp_path: Path) -> None:
    reference = observe(method(), tmp_path)
    changed = {}
    for name in method_cards()["vcp-clip"].variants:
        found = observe(method(f"@{name}"), tmp_path)
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    every = {"pre", "post", "top"}
    assert changed == {
        "quick-gelu": set(),  # another backbone has its own activation
        "pre-only": set(),  # acts on the maps
        "post-only": set(),
        "no-global": every,
        "max-score": set(),
        "shallow": every,
    }
    assert resolve("vcp-clip@quick-gelu").method.backbone.activation == "quick_gelu"
    size = (84, 84)
    pre, post, both = (method(v).maps(reference, size) for v in ("@pre-only", "@post-only", ""))
    assert torch.allclose(both, 0.2 * pre + 0.8 * post, atol=1e-6)
    extrema = torch.tensor([[0.0, 0.1], [0.0, 0.9], [0.0, 0.5]])
    assert torch.equal(method("@max-score").image_scores(reference, extrema), extrema[:, 1])
    assert torch.equal(method().image_scores(reference, extrema), reference["top"].sum(dim=1))


def test_texts_differ_from_image_to_image_only_with_context() -> None:
    chosen, clip = method(), tiny.clip(BACKBONE, "gelu")
    image = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    texts = encode_texts(chosen, clip, learned(chosen), image)
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)
    alone = torch.cat([encode_texts(chosen, clip, learned(chosen), one[None]) for one in image])
    assert torch.allclose(texts, alone, atol=1e-5)
    plain = encode_texts(method("@no-global"), clip, learned(chosen), image)
    assert torch.allclose(plain[0], plain[1], atol=1e-5)


def test_the_answers_are_those_of_an_attention_over_the_patches() -> None:
    chosen, tensors = method(), learned(method())
    generator = torch.Generator().manual_seed(1)
    patches = F.normalize(torch.randn(2, 7, 128, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(2, 2, 128, generator=generator), dim=-1)

    def project(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"][..., 0], tensors[f"{name}.bias"])

    q = project("q_proj_pre", texts).unflatten(-1, (8, 16)).transpose(1, 2)  # type: ignore[no-untyped-call]
    k = project("k_proj_pre_1", patches).unflatten(-1, (8, 16)).transpose(1, 2)  # type: ignore[no-untyped-call]
    v = project("v_proj_pre_1", patches).unflatten(-1, (8, 16)).transpose(1, 2)  # type: ignore[no-untyped-call]
    mixed = ((q @ k.mT).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    wanted = F.normalize(project("proj_post_t", mixed), dim=-1)
    assert torch.allclose(asked(chosen, tensors, patches, texts), wanted, atol=1e-5)


def test_top_pixels_are_a_share() -> None:
    maps = torch.arange(100.0).reshape(1, 10, 10)
    assert float(top_mean(maps, 0.02)) == 98.5
    assert float(top_mean(maps, 1e-9)) == 99
    assert float(top_mean(maps, 5.0)) == 49.5
    assert round(VcpClip().top_share * 518**2) == 2000


def test_temperatures_learn_at_a_rate_of_their_own_and_dropout_depends_on_the_step() -> None:
    clip = tiny.clip(BACKBONE, "gelu")
    (stage,) = ContextRecipe().stages(method(), clip, {})
    rates = {id(value): group["lr"] for group in stage.optimiser.param_groups for value in group["params"]}
    assert len(rates) == len(stage.parameters)
    hot = {name for name, value in stage.parameters.items() if rates[id(value)] == 0.01}
    assert hot == {"prompt_temp", "prompt_temp_l1"}
    first, again, later = (ContextRecipe().kept(method(), clip, 3, step) for step in (0, 0, 1))
    assert first is not None and again is not None and later is not None
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert first.shape == (12, 6, 1, 128) and set(first.flatten().tolist()) <= {
        0.0,
        float(torch.tensor(1.0) / 0.9),
    }
    assert ContextRecipe(dropout=0.0).kept(method(), clip, 3, 0) is None
    assert stage.vary is not None and not stage.cached


def author_file(path: Path, chosen: VcpClip, surplus: bool = True) -> dict[str, Tensor]:
    """Write a file as the authors do; return what it holds under our names."""
    tensors = learned(chosen)
    nested: dict[str, Any] = {"trainable_linearlayer": {}, "New_Lan_Embed": {}, "Zero_try": {}}
    for name, value in tensors.items():
        if name.startswith("fc."):
            nested["trainable_linearlayer"][name] = value
        elif name.startswith(("q_proj", "k_proj", "v_proj", "proj_post", "prompt_temp_l1")):
            nested["Zero_try"][name] = value
        elif name.startswith(("prompt_query", "prompt_linear1", "prompt_temp")):
            nested["New_Lan_Embed"][name] = value
        else:
            nested[name] = nn.Parameter(value)
    nested["prompt_text_projection"] = nn.Parameter(torch.zeros(128, 128))
    if surplus:
        nested["Zero_try"]["unused.weight"] = torch.zeros(3)
    torch.save(nested, path)
    return tensors


def test_the_authors_file_becomes_a_checkpoint(tmp_path: Path) -> None:
    wanted = author_file(tmp_path / "train_visa.pth", method())
    out, about = import_checkpoint(
        [tmp_path / "train_visa.pth"], "vcp-clip", trained_on="visa", backbone=BACKBONE, weights="random"
    )
    assert about.dataset == "visa"
    found = load_checkpoint(out, "vcp-clip", checkpoint_shapes(VcpClip(), tiny.clip(BACKBONE, "gelu")))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_a_file_that_lacks_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_visa.pth"
    author_file(path, method())
    content = torch.load(path, weights_only=True)
    del content["prompt_norm.bias"]
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"1 missing, first prompt_norm\.bias"):
        import_checkpoint([path], "vcp-clip", backbone=BACKBONE, weights="random")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "24,25"}, "blocks 1 to 24"),
        ({"heads": "7"}, "7 heads do not divide"),
        ({"template": "a photo"}, "needs {} once"),
        ({"normal": "very good"}, "equally many tokens"),
        ({"deep_length": "0"}, "must be 1 or more"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    checkpoint: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        method("", checkpoint, **settings).prepare(tiny.clip(BACKBONE, "gelu"), {"any": "any"})


def test_an_embedding_of_another_width_is_refused_with_the_way_out(checkpoint: Path) -> None:
    with pytest.raises(MethodError, match="global_context=false"):
        method("", checkpoint).prepare(tiny.clip("tiny-l14", "gelu"), {"any": "any"})


def test_unknown_categories_are_refused(checkpoint: Path) -> None:
    observer = method("", checkpoint).prepare(tiny.clip(BACKBONE, "gelu"), {"any": "any"})
    with pytest.raises(MethodError, match="category 'other' was not prepared; prepared: any"):
        observer.observe(tiny.batch(tiny.images(5, 1, 84), ["other"]))
