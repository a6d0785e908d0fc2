"""A second frozen tower: its forms, its noise, what is refused; self-correlations of the first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.kit import tiny
from zsadbench.clip.random import random_second
from zsadbench.clip.second import SECOND_MINIATURE, find_second, load_second, timm_form
from zsadbench.errors import MethodError, WeightsError
from zsadbench.files import sha256_of
from zsadbench.inputs import SecondTower

NOISE = SecondTower(SECOND_MINIATURE, "random")


def hub_state() -> dict[str, Tensor]:
    """Return the miniature's noise by the names of the authors' hub, the unused one included."""
    width = 64
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 37, width),
        "register_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(3):
        block = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
            "ls2.gamma": (width,),
        }
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return random_second(SECOND_MINIATURE, shapes)


def by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the patch tokens as the authors' class makes them, at its own size."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).mT
    first = state["cls_token"].expand(len(x), -1, -1)
    x = torch.cat([first, x], dim=1) + state["pos_embed"]
    x = torch.cat([x[:, :1], state["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (64,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for number in range(3):
        at = f"blocks.{number}"
        packed = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
        q, k, v = packed.view(len(x), -1, 3, 2, 32).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 32**0.5).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + state[f"{at}.ls1.gamma"] * linear(mixed, f"{at}.attn.proj")
        inner = F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"))
        x = x + state[f"{at}.ls2.gamma"] * linear(inner, f"{at}.mlp.fc2")
    return norm(x, "norm")[:, 5:]


def test_noise_is_that_of_the_hubs_names_and_the_walk_is_dinov2s() -> None:
    tower, images = load_second(NOISE), tiny.images(0, 2, 84)
    assert tower.patch == 14
    wanted = by_hand(hub_state(), images)
    assert torch.allclose(tower.patches(images), wanted, atol=2e-5)
    assert load_second(SecondTower(SECOND_MINIATURE, "random:1")).patches(images).shape == wanted.shape
    raw = torch.full((1, 3, 84, 84), 0.485)
    assert torch.allclose(tower.normalise(raw)[0, 0], torch.zeros(84, 84))
    assert torch.allclose(tower.normalise(raw)[0, 1], torch.full((84, 84), (0.485 - 0.456) / 0.224))


def test_files_of_the_hub_and_of_timm_are_one(tmp_path: Path) -> None:
    hub, timm, pickled = (tmp_path / name for name in ("hub.safetensors", "timm.safetensors", "hub.pth"))
    save_file(hub_state(), hub)
    save_file({key: value.contiguous() for key, value in timm_form(hub_state()).items()}, timm)
    torch.save(hub_state(), pickled)
    images = tiny.images(1, 1, 112)
    wanted = load_second(NOISE).patches(images)
    for file in (hub, timm, pickled):
        tower = SecondTower(SECOND_MINIATURE, str(file))
        assert torch.equal(load_second(tower).patches(images), wanted), file
        found = find_second(tower)
        assert found.described() == {
            "name": SECOND_MINIATURE,
            "weights": file.name,
            "sha256": sha256_of(file),
        }


def test_a_clip_loads_a_tower_once_in_its_own_number_type() -> None:
    clip = tiny.clip("tiny-l14-e128")
    assert clip.beside(NOISE) is clip.beside(SecondTower(SECOND_MINIATURE, "random"))
    half = load_second(NOISE, dtype=torch.bfloat16).patches(tiny.images(0, 1, 84))
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), load_second(NOISE).patches(tiny.images(0, 1, 84)), atol=0.2)


@pytest.mark.parametrize(
    ("tower", "words"),
    [
        (
            SecondTower("vit_base_patch14_reg4_dinov", "lvd142m"),
            "Did you mean 'vit_base_patch14_reg4_dinov2'",
        ),
        (SecondTower("vit_base_patch14_reg4_dinov2", "lvd142"), "Did you mean 'lvd142m'"),
        (SecondTower(SECOND_MINIATURE, "lvd142m"), "no weights 'lvd142m' are published"),
        (SecondTower(SECOND_MINIATURE, "random:x"), "a whole number"),
        (SecondTower(SECOND_MINIATURE, "absent.pth"), "no such file"),
    ],
)
def test_what_cannot_be_had(tower: SecondTower, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        find_second(tower, "dino")


def test_weights_that_are_not_there_say_how_to_pass_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub: str) -> Path:
        assert hub == "timm/vit_base_patch14_reg4_dinov2.lvd142m/model.safetensors"
        raise OSError("no network")

    monkeypatch.setattr("zsadbench.clip.downloads._from_hub", offline)
    with pytest.raises(WeightsError, match=r"no network\).*--set dino_weights=FILE"):
        find_second(SecondTower("vit_base_patch14_reg4_dinov2", "lvd142m"), "dino")


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({**hub_state(), "blocks.0.ls1.gamma": torch.ones(32)}, path)
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma is 32 in the file, 64 expected"):
        load_second(SecondTower(SECOND_MINIATURE, str(path)))


def test_self_correlations_are_summed_before_one_projection() -> None:
    clip, batch = tiny.clip("tiny-l14-e128"), tiny.batch(tiny.images(2, 2, 84), ["any"] * 2)
    kinds = ("qq", "kk", "vv", "qq+kk+vv", "(q+k+v)^2")
    clip.vision.tap(stream=[5], values=[5], **{kind: [5] for kind in kinds})
    trace, block = clip.vision.trace(batch), clip.vision.blocks[5]
    q, k, v = block.qkv(trace.stream(5))
    bias = block.attention.out_proj.bias

    def gathered(z: Tensor) -> Tensor:
        weights = (z @ z.mT / z.shape[-1] ** 0.5).softmax(dim=-1)
        found: Tensor = (weights @ v).transpose(1, 2).flatten(2) @ block.attention.out_proj.weight.T
        return found

    single = {"qq": gathered(q), "kk": gathered(k), "vv": gathered(v)}
    for kind in ("qq", "kk", "vv"):
        assert torch.allclose(trace.correlation(5, kind), single[kind] + bias, atol=1e-5)
    assert torch.equal(trace.correlation(5, "vv"), trace.values(5))
    total = trace.correlation(5, "qq+kk+vv")
    assert torch.allclose(total, sum(single.values()) + bias, atol=1e-5)
    joined = torch.cat([q, k, v], dim=-1)
    scale = np.sqrt(3 * q.shape[-1])
    weights = (joined @ joined.mT / scale).softmax(dim=-1)
    wanted = (weights @ v).transpose(1, 2).flatten(2) @ block.attention.out_proj.weight.T + bias
    assert torch.allclose(trace.correlation(5, "(q+k+v)^2"), wanted, atol=1e-5)
    with pytest.raises(MethodError, match=r"kept no 'qq\+kk' of block 5.*tap\(\*\*\{'qq\+kk': \[5\]\}\)"):
        trace.correlation(5, "qq+kk")
    clip.vision.forget()
