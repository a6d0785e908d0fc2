"""Weights from every kind of file, read without executing anything."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.kit import tiny
from zsadbench.cli.weights import app
from zsadbench.clip import downloads, weights
from zsadbench.clip.archives import is_torchscript, read_state, read_torchscript
from zsadbench.clip.towers import load_clip
from zsadbench.clip.weights import find_weights, verify
from zsadbench.errors import WeightsError, ZsadError
from zsadbench.inputs import Backbone
from zsadbench.method import resolve

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

State = dict[str, Tensor]
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def state(config: Path) -> State:
    clip = load_clip(Backbone(str(config), "random:7"))
    return {key: value.clone() for key, value in clip.text.module.state_dict().items()}


def as_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "small.safetensors")
    return folder / "small.safetensors"


def as_pickle(state: Any, folder: Path) -> Path:
    torch.save(state, folder / "small.pt")
    return folder / "small.pt"


def as_legacy_pickle(state: State, folder: Path) -> Path:
    torch.save(state, folder / "small.pt", _use_new_zipfile_serialization=False)
    return folder / "small.pt"


def as_checkpoint(state: State, folder: Path) -> Path:
    module = {f"module.{key}": value for key, value in state.items()}
    return as_pickle({"epoch": 3, "state_dict": module}, folder)


def as_custom_text(state: State, folder: Path) -> Path:
    held = {k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}": v for k, v in state.items()}
    return as_pickle(held | {"logit_scale": state["logit_scale"].view(1)}, folder)


class Node(nn.Module):
    """A tree of parameters, in the form of a module that TorchScript can save."""

    def __init__(self, state: State) -> None:
        super().__init__()
        branches: dict[str, State] = {}
        for key, value in state.items():
            name, _, rest = key.partition(".")
            if rest:
                branches.setdefault(name, {})[rest] = value
            else:
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for name, branch in branches.items():
            self.add_module(name, Node(branch))

    def forward(self, x: Tensor) -> Tensor:
        return x


def as_torchscript(state: State, folder: Path) -> Path:
    torch.jit.save(torch.jit.script(Node(state)), folder / "small.pt")
    return folder / "small.pt"


FORMS = [as_safetensors, as_pickle, as_legacy_pickle, as_checkpoint, as_custom_text, as_torchscript]


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_file_gives_the_same_towers(
    form: Callable[[State, Path], Path], state: State, config: Path, tmp_path: Path
) -> None:
    path = form(state, tmp_path)
    clip = load_clip(Backbone(str(config), str(path), activation="gelu"))
    found = clip.text.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("form", [as_safetensors, as_torchscript])
def test_half_precision_files_become_float32(
    form: Callable[[State, Path], Path], state: State, config: Path, tmp_path: Path
) -> None:
    path = form({key: value.half() for key, value in state.items()}, tmp_path)
    clip = load_clip(Backbone(str(config), str(path)))
    assert clip.vision.proj.dtype == torch.float32
    assert torch.equal(clip.vision.proj, state["visual.proj"].half().float())


def test_torchscript_keeps_strides_and_shared_storage(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    path = as_torchscript({"a": base, "t.b": base.T, "t.c": base[1:, 2], "t.d": torch.empty(0)}, tmp_path)
    found = read_torchscript(path)
    assert torch.equal(found["a"], base) and torch.equal(found["t.b"], base.T)
    assert torch.equal(found["t.c"], base[1:, 2]) and found["t.d"].numel() == 0


class Hostile:
    """Pickles as a call of os.system that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def hostile_archive(payload: Path, folder: Path) -> Path:
    """Return a TorchScript-like archive around the pickle of ``payload``."""
    with zipfile.ZipFile(payload) as source, zipfile.ZipFile(folder / "jit.pt", "w") as target:
        data = next(name for name in source.namelist() if name.endswith("data.pkl"))
        target.writestr("archive/data.pkl", source.read(data))
        target.writestr("archive/constants.pkl", b"\x80\x02).")
    return folder / "jit.pt"


def test_hostile_pickles_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    plain = as_pickle({"visual.proj": Hostile(marker)}, tmp_path)
    archive = hostile_archive(plain, tmp_path)
    assert is_torchscript(archive) and not is_torchscript(plain)
    for path in (plain, archive):
        with pytest.raises(WeightsError, match=f"{path.name}: cannot be read as weights"):
            read_state(path)
    assert not marker.exists()
    os.system(f"touch '{marker}'")
    assert marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.98])
def test_a_truncated_file_is_said_to_be_incomplete(
    form: Callable[[State, Path], Path], kept: float, state: State, tmp_path: Path
) -> None:
    path = form(state, tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(WeightsError, match=r"cannot be read as weights|the file is empty") as caught:
        read_state(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [([1, 2], "not a dict of tensors"), ({"a": 1}, "no tensors")]
)
def test_a_file_without_tensors_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        read_state(as_pickle(content, tmp_path))


def test_weights_of_another_architecture_say_what_differs(tmp_path: Path) -> None:
    path = as_safetensors(dict(tiny.clip("tiny-l14").text.module.state_dict()), tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_clip(Backbone("tiny-b16p", str(path)))
    message = str(caught.value)
    assert "weights of another architecture than 'tiny-b16p'" in message
    for fact in (
        "image blocks 24 in the file, 12 expected",
        "patch 14 in the file, 16 expected",
        "joint width 96 in the file, 80 expected",
    ):
        assert fact in message


def test_missing_and_surplus_tensors_are_named(state: State, config: Path, tmp_path: Path) -> None:
    proj = state.pop("visual.proj")
    path = as_safetensors(state, tmp_path)
    with pytest.raises(WeightsError, match=r"1 missing, first visual\.proj"):
        load_clip(Backbone(str(config), str(path)))
    path = as_safetensors(state | {"visual.proj": proj, "visual.extra": proj.clone()}, tmp_path)
    with pytest.raises(WeightsError, match=r"1 surplus, first visual\.extra"):
        load_clip(Backbone(str(config), str(path)))
    path = as_safetensors(state | {"visual.proj": proj[:, :3].clone()}, tmp_path)
    with pytest.raises(WeightsError, match=r"visual\.proj is \(64, 3\) in the file, \(64, 16\) expected"):
        load_clip(Backbone(str(config), str(path)))


def test_what_openai_files_hold_beside_weights_is_left_out(
    state: State, config: Path, tmp_path: Path
) -> None:
    beside = {"input_resolution": torch.tensor(32), "transformer.resblocks.0.attn_mask": torch.zeros(8, 8)}
    path = as_torchscript(state | beside, tmp_path)
    assert torch.equal(load_clip(Backbone(str(config), str(path))).vision.proj, state["visual.proj"])


def test_the_activation_of_a_file(state: State, config: Path, tmp_path: Path) -> None:
    path = str(as_safetensors(state, tmp_path))
    assert find_weights(Backbone(str(config), path)).activation == "gelu"
    assert find_weights(Backbone("ViT-B-16-plus-240", path)).activation == "gelu"
    assert find_weights(Backbone("ViT-L-14-336", path)).activation == "quick_gelu"  # only OpenAI's exist
    assert find_weights(Backbone("ViT-B-16-quickgelu", path)).activation == "quick_gelu"
    with pytest.raises(WeightsError, match="state it with --activation gelu or --activation quick_gelu"):
        find_weights(Backbone("ViT-B-16", path))
    assert find_weights(Backbone("ViT-B-16", path, "quick_gelu")).activation == "quick_gelu"
    archive = str(as_torchscript(state, tmp_path))
    assert find_weights(Backbone("ViT-B-16", archive)).activation == "quick_gelu"


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("ViT-L-14-33", "openai", "unknown backbone 'ViT-L-14-33'. Did you mean 'ViT-L-14-336'?"),
        ("tiny-b16", "random", "unknown backbone 'tiny-b16'. Did you mean 'tiny-b16p'?"),
        ("ViT-L-14-336", "opanai", "no weights 'opanai' are published .* Did you mean 'openai'?"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "no weights 'laion2b_s34b_b79k' are published"),
        ("tiny-b16p", "openai", "no weights 'openai' are published for backbone 'tiny-b16p'. Known: random"),
        ("tiny-b16p", "nowhere/x.safetensors", "nowhere/x.safetensors: no such file"),
        ("tiny-b16p", "/", "/: is a folder"),
        ("tiny-b16p", "random:x", "the seed of random weights is a whole number, as in random:3"),
        ("none.json", "random", "none.json: no such architecture file"),
    ],
)
def test_what_cannot_be_found_is_said_with_the_nearest_name(name: str, tag: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message.replace("?", r"\?")):
        find_weights(Backbone(name, tag))


OTHER_KINDS = (
    *("RN50", "convnext_base", "ViT-B-16-SigLIP", "EVA02-B-16", "MobileCLIP-S1", "coca_ViT-B-32"),
    *("ViT-L-14-CLIPA", "xlm-roberta-base-ViT-B-32"),
)


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_towers_of_another_kind_are_refused_before_anything_is_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "fetch", lambda *_: pytest.fail("fetched"))
    tag = next(iter(downloads.tags(name)), "random")
    for use in (
        lambda: load_clip(Backbone(name, "random")),
        lambda: find_weights(Backbone(name, tag)),
        lambda: verify(name, tag),
        lambda: resolve("clip", backbone=name, weights="random"),
        lambda: resolve("clip", backbone=name),
    ):
        with pytest.raises(
            WeightsError, match=rf"'{name}' is not a plain ViT CLIP .* can be used: ViT-B-16,"
        ):
            use()
    assert name not in weights.architectures()
    for words in (["list", name], ["prefetch", name, tag]):
        assert isinstance(CliRunner().invoke(app, words).exception, WeightsError)


@pytest.mark.parametrize(
    ("tower", "size", "message"),
    [
        ("vision_cfg", {"width": 10**12}, "no whole number from 1 to"),
        ("vision_cfg", {"layers": -1}, "no whole number from 1 to"),
        ("vision_cfg", {"patch_size": "16"}, "no whole number from 1 to"),
        ("text_cfg", {"heads": 0}, "no whole number from 1 to"),
        ("text_cfg", {"heads": 3}, "cannot be built"),
    ],
)
def test_sizes_that_make_no_tower_are_refused(
    tower: str, size: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(CONFIG | {tower: CONFIG[tower] | size}))
    with pytest.raises(WeightsError, match=message) as caught:
        load_clip(Backbone(str(path), "random"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"embed_dim": 3}'])
def test_a_json_that_is_no_architecture_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(WeightsError, match=r"wrong\.json: not an open_clip architecture"):
        find_weights(Backbone(str(path), "random"))


def test_a_hub_config_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    assert weights.native_size(str(path)) == 32
    assert weights.layers_and_patch(str(path)) == (1, 16)


def test_random_weights_depend_on_their_seed_alone(config: Path) -> None:
    three, again, none = (
        load_clip(Backbone(str(config), tag)).vision.proj for tag in ("random:3", "random:3", "random")
    )
    assert torch.equal(three, again) and not torch.equal(three, none)
    assert find_weights(Backbone("tiny-l14", "random")).digest == "random/tiny-l14/0"


def test_verify_compares_with_the_published_digest(
    state: State, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_safetensors(state, tmp_path).rename(tmp_path / "small.pt")
    published = {"url": "https://example.org/small-deadbeef.pt", "quick_gelu": False}
    monkeypatch.setattr(weights, "entry", lambda name, tag: published)
    monkeypatch.setattr(weights, "fetch", lambda name, tag: path)
    with pytest.raises(WeightsError, match=r"published is deadbeef\.\.\.; delete it and run: zsad weights"):
        verify(str(config), "made_up")
    digest = find_weights(Backbone(str(config), "made_up")).digest
    assert weights._published_digest(f"https://x.org/{digest}/small.pt", path) == digest
    assert weights._published_digest(f"https://x.org/small-{digest[:8]}.pt", path) == digest[:8]
    assert weights._published_digest("https://x.org/small.pt", path) == ""


def test_the_command_line_verifies_a_file(state: State, config: Path, tmp_path: Path) -> None:
    path = as_safetensors(state, tmp_path)
    done = CliRunner().invoke(app, ["verify", str(config), str(path)])
    assert done.exit_code == 0
    facts = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert facts["file"] == str(path) and facts["activation"] == "gelu" and len(facts["sha256"]) == 64
    assert facts["fits"] == str(config)
    wrong = CliRunner().invoke(app, ["verify", "tiny-b16p", str(path)])
    assert isinstance(wrong.exception, WeightsError) and "image width 64" in str(wrong.exception)
    wrong = CliRunner().invoke(app, ["verify", str(config), str(path), "--activation", "gelo"])
    assert isinstance(wrong.exception, WeightsError) and "Did you mean 'gelu'?" in str(wrong.exception)


def test_the_command_line_fetches_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "fetch", lambda name, tag: Path("/cache") / tag)
    done = CliRunner().invoke(app, ["prefetch", "ViT-L-14", "openai"])
    assert done.output == "ViT-L-14/openai: /cache/openai\n"
    lines = CliRunner().invoke(app, ["list", "l-14-336"]).output.splitlines()
    assert lines[0] == f"{'ViT-L-14-336':<22} 336 px, patch 14, 24 blocks"
    assert lines[1].split() == ["openai", "random"]
    assert isinstance(CliRunner().invoke(app, ["list", "tinny"]).exception, ZsadError)
