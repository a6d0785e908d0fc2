"""AF-CLIP: what its variants change, its neighbourhoods, the gradient of its training, its authors' files."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from methods._training_af_clip import AdaptorRecipe, alignment, focal, mutated_focal, on_patches
from methods.af_clip import ATTENTION, AfClip, aggregated, checkpoint_shapes
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, load_checkpoint, read_provenance, save_checkpoint
from zsadbench.errors import MethodError, WeightsError
from zsadbench.method import Evidence, method_cards, resolve
from zsadbench.training import import_checkpoint
from zsadbench.training.inert import MODULE, read_inert

CATEGORIES = ["bottle", "screw", "bottle"]


def learned(seed: str = "test") -> dict[str, Tensor]:
    shapes = checkpoint_shapes(AfClip(), tiny.clip("tiny-l14", "quick_gelu", "bilinear"))
    return {name: tiny.draw(name, shape, 0.2, salt=seed) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("af-clip") / "adaptor.safetensors"
    save_checkpoint(path, learned(), Provenance("af-clip"))
    return path


def method(checkpoint: Path | str, variant: str = "", **settings: str) -> AfClip:
    given = {"checkpoint": str(checkpoint), **settings}
    return cast(
        AfClip, resolve(f"af-clip{variant}", backbone="tiny-l14", weights="random", settings=given).method
    )


def observe(chosen: AfClip, size: int = 84) -> Evidence:
    clip = tiny.clip("tiny-l14", "quick_gelu", chosen.backbone.position)
    return chosen.prepare(clip, {"bottle": "", "screw": ""}).observe(
        tiny.batch(tiny.images(5, 3, size), CATEGORIES)
    )


def test_every_variant_changes_what_its_summary_says(checkpoint: Path) -> None:
    reference = observe(method(checkpoint), 112)
    changed = {}
    for name in method_cards()["af-clip"].variants:
        found = observe(method(checkpoint, f"@{name}"), 112)
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == {
        "one-scale": {"map", "score"},
        "bicubic-positions": {"map", "score"},
        "rgb-last": set(),  # acts before the tower
    }
    assert method(checkpoint, "@rgb-last").preprocess.rgb == "after"


def test_a_neighbourhood_is_a_weighted_sum_with_zeros_outside() -> None:
    tokens = torch.arange(1.0, 1 + 2 * 13).reshape(1, 13, 2)
    found = aggregated(tokens, (3, 4), 3, 4.0)
    assert torch.equal(found[:, 0], tokens[:, 0])
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / 32)
    kernel = torch.outer(line, line) / torch.outer(line, line).sum()
    picture = tokens[0, 1:].reshape(3, 4, 2)
    wanted = torch.zeros(3, 4, 2)
    for row in range(3):
        for column in range(4):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= row + dy < 3 and 0 <= column + dx < 4:
                        wanted[row, column] += kernel[dy + 1, dx + 1] * picture[row + dy, column + dx]
    assert torch.allclose(found[0, 1:].reshape(3, 4, 2), wanted, atol=1e-5)
    assert aggregated(tokens, (3, 4), 1, 4.0) is tokens


def test_targets_are_the_middle_pixels_and_one_half_stays() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 1:3, 1:3] = 1  # all four pixels in the middle of the first patch
    masks[0, 1:3, 5] = 1  # two of the four of the second
    masks[0, 4, 4] = 1  # a corner that no middle sees
    assert torch.equal(on_patches(masks, (2, 2))[0, 0], torch.tensor([[1.0, 0.5], [0.0, 0.0]]))


def test_alignment_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 3, 6, 5, generator=generator)
    targets = torch.tensor([[0, 1, 1, 0, 0.5, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0.5]])
    unit = features / features.norm(dim=-1, keepdim=True)
    cosines = unit @ unit.mT
    kinds = targets[:, :, None] + targets[:, None]
    known = (targets[:, :, None] != 0.5) & (targets[:, None] != 0.5)
    wanted = torch.stack(
        [one[(kinds == 1) & known].mean() - one[(kinds != 1) & known].mean() for one in cosines]
    )
    assert torch.allclose(alignment(features, targets), wanted, atol=1e-6)
    assert torch.equal(alignment(features, torch.zeros(3, 6)), torch.zeros(2))


def test_the_reference_gradient_differs_only_where_the_target_is_zero() -> None:
    p = torch.tensor([0.1, 0.7, 0.4, 0.9], requires_grad=True)
    targets = torch.tensor([0.0, 0.0, 1.0, 0.5])
    clean, changed = (torch.autograd.grad(loss(p, targets), p)[0] for loss in (focal, mutated_focal))
    assert torch.equal(clean[2:], changed[2:])
    q = p.detach()[:2]
    wanted = (q**3 * (1 + q) / (1 - q) - 8 * q**3 * torch.log(1 - q)) / 4
    assert torch.allclose(changed[:2], wanted, rtol=1e-5)
    assert torch.equal(focal(p, targets), mutated_focal(p, targets))


def test_a_batch_without_anomalies_has_finite_gradients() -> None:
    features = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alignment(features, torch.zeros(2, 5)).sum().add(features.sum() * 0).backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None and bool(torch.isfinite(features.grad).all())


def test_training_starts_as_the_authors_do() -> None:
    clip = tiny.clip("tiny-l14", "quick_gelu", "bilinear")
    start = AdaptorRecipe().start(AfClip(), clip)
    assert {name: tuple(value.shape) for name, value in start.items()} == checkpoint_shapes(AfClip(), clip)
    assert 0.008 < float(start["state_prompt_embedding"].std()) < 0.012
    assert float(start[ATTENTION + "to_q.weight"].abs().max()) <= 128**-0.5
    assert float(start[ATTENTION + "to_out.0.weight"].abs().max()) <= 512**-0.5
    assert bool((start["adaptor.attention.norm.weight"] == 1).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "24,25"}, "not all among 24 image blocks"),
        ({"neighbourhoods": "1,2"}, "odd numbers of patches"),
        ({"heads": "7"}, "7 heads do not divide"),
        ({"prompt_length": "73"}, "the text tower has 77"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    checkpoint: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        observe(method(checkpoint, **settings))


class CrossAttention(nn.Module):
    """The authors' attention, as their pickled modules name its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, 512, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(512, width), nn.Dropout(0.0))


class BasicTransformerBlock(nn.Module):
    """An attention with its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.norm = CrossAttention(width), nn.LayerNorm(width)


class Adaptor(nn.Module):
    """What ``torch.save`` was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = BasicTransformerBlock(width)


def author_files(folder: Path) -> tuple[list[Path], dict[str, Tensor]]:
    """Write the two files as the authors save them; return them and what they hold under our names."""
    torch.manual_seed(0)
    module = Adaptor(128)
    prompt = nn.Parameter(0.01 * torch.randn(1, 12, 128))
    files = [folder / "mvtec_prompt.pt", folder / "mvtec_adaptor.pt"]
    torch.save(prompt, files[0])
    torch.save(module, files[1])
    tensors = {f"adaptor.{name}": value.detach() for name, value in module.state_dict().items()}
    return files, {"state_prompt_embedding": prompt.detach(), **tensors}


def test_the_authors_two_files_become_a_checkpoint(tmp_path: Path) -> None:
    files, wanted = author_files(tmp_path)
    out, about = import_checkpoint(
        files,
        "af-clip",
        trained_on="mvtec",
        out=tmp_path / "ours.safetensors",
        backbone="tiny-l14",
        weights="random",
    )
    assert about.method == "af-clip" and about.dataset == "mvtec"
    assert "mvtec_adaptor.pt" in read_provenance(out).source
    shapes = checkpoint_shapes(AfClip(), tiny.clip("tiny-l14", "quick_gelu", "bilinear"))
    found = load_checkpoint(out, "af-clip", shapes)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert observe(method(out))["map"].shape == (3, 6, 6)


class Evil:
    """Pickles to a call that writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_nothing_of_a_hostile_module_is_run(tmp_path: Path) -> None:
    files, _ = author_files(tmp_path)
    target, evil = tmp_path / "executed", tmp_path / "evil.pt"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({"_modules": {}, "x": Evil(target)}))
    with pytest.raises(WeightsError, match=r"evil\.pt: holds something else than tensors and modules"):
        read_inert(evil)
    with pytest.raises(WeightsError, match=r"evil\.pt"):
        import_checkpoint(
            [files[0], evil], "af-clip", out=tmp_path / "o", backbone="tiny-l14", weights="random"
        )
    assert not target.exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize("part", ["size", "cut", "kind"])
def test_damaged_modules_are_refused(tmp_path: Path, part: str) -> None:
    (_, adaptor), _ = author_files(tmp_path)
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(adaptor) as old, zipfile.ZipFile(broken, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if part == "size" and item.filename.endswith("/data/0"):
                content = content[:-4]
            if part == "kind" and item.filename.endswith("/data.pkl"):
                content = content.replace(b"FloatStorage", b"LongStorage\n"[:-1] + b" "[:0], 1)
            new.writestr(item, content)
    if part == "cut":
        broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"broken\.pt: "):
        read_inert(broken)


def test_a_module_is_read_as_numbers_alone(tmp_path: Path) -> None:
    (_, adaptor), wanted = author_files(tmp_path)
    found = read_inert(adaptor)[MODULE]
    assert {f"adaptor.{name}" for name in found} == wanted.keys() - {"state_prompt_embedding"}
    for name, value in found.items():
        assert torch.equal(value, wanted[f"adaptor.{name}"])
