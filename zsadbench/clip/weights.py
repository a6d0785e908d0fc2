"""Where CLIP weights come from: open_clip tags, local files, or deterministic noise.

No file is ever executed: safetensors and tensor-only pickles are read as data, and of a TorchScript
archive (the form in which OpenAI published CLIP) only the tensors are taken.
"""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import WeightsError, suggest
from ..files import digest_of, sha256_of
from ..inputs import Backbone
from .archives import examine, is_torchscript, read_state, reason, room_for, sound
from .downloads import entry, fetch, published_digest, tags
from .random import random_state
from .tokens import PrunedTokenizer, whole_tokenizer

Activation = Literal["gelu", "quick_gelu"]

DAMAGED = "the file is damaged or holds something else; download it again"
_SEED_DIGITS = 18


@dataclass(frozen=True)
class Weights:
    """One CLIP's architecture and the place its tensors come from.

    ``source`` is the file, or ``random:<seed>``; ``digest`` its SHA-256 (for noise: its name).
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    source: Path | str
    tag: str
    digest: str
    activation: Activation

    def architecture(self) -> dict[str, Any]:
        """Return the arguments of ``open_clip.model.CLIP``."""
        parts = {key: copy.deepcopy(self.config[key]) for key in ("embed_dim", "vision_cfg", "text_cfg")}
        return {**parts, "quick_gelu": self.activation == "quick_gelu"}

    def identity(self) -> dict[str, str]:
        """Return what its numbers depend on: name, weights and activation, and of a file its sizes.

        A backbone that a file declares is known by what the file says, wherever it lies.
        """
        architecture = digest_of(self.config) if Path(self.name).suffix == ".json" else ""
        return {
            "name": Path(self.name).stem,
            "weights": self.digest,
            "activation": self.activation,
            **({"architecture": architecture} if architecture else {}),
        }

    def outline(self) -> Any:
        """Return the ``open_clip.model.CLIP`` of this architecture on the meta device, without numbers.

        Raises:
            WeightsError: if the sizes of the config do not belong together.
        """
        import open_clip

        try:
            with torch.device("meta"):  # no initialisation is computed only to be overwritten
                return open_clip.model.CLIP(**self.architecture())
        except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"backbone '{self.name}' cannot be built ({reason(error)}); correct the sizes in its file"
            ) from None

    def load_into(self, model: Any) -> None:
        """Put the tensors (as float32) into ``model``, which may live on the meta device.

        Raises:
            WeightsError: if the tensors are those of another architecture, saying what differs, or no
                finite real numbers.
        """
        wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        if isinstance(self.source, str):
            tensors = random_state(self.name, wanted, int(self.source.partition(":")[2]))
        else:
            tensors = self._read(wanted, self.source)
        model.load_state_dict({key: tensors[key] for key in wanted}, strict=True, assign=True)

    def _read(self, wanted: dict[str, tuple[int, ...]], path: Path) -> dict[str, Tensor]:
        tensors = read_state(path, room_for(wanted.values()))
        if differences := _compare(wanted, tensors):
            raise WeightsError(
                f"{path}: weights of another architecture than '{self.name}': {differences}; "
                "pass the backbone they belong to with --backbone"
            )
        read = {key: sound(path, key, tensors[key], DAMAGED).contiguous() for key in wanted}
        scale = float(read["logit_scale"].exp())
        if not 0 < scale < math.inf:
            raise WeightsError(f"{path}: logit_scale gives a temperature of {scale:g}; {DAMAGED}")
        return read

    def tokenizer(self) -> Any:
        """Return CLIP's tokenizer: a call ``(texts, context_length=n)`` gives token ids."""
        full = whole_tokenizer(self.config["text_cfg"].get("context_length", 77))
        kept = self.config.get("vocabulary")
        return PrunedTokenizer(full, kept) if kept else full


def architectures() -> list[str]:
    """Return the names of the backbones that can be loaded: open_clip's plain ViTs and those shipped here."""
    shipped = [path.stem for path in _shipped().glob("*.json")]
    plain = [name for name in _published() if not _foreign_option(_any_config(name))]
    return sorted({*plain, *shipped})


@cache
def _published() -> dict[str, Path]:
    """Return open_clip's architecture files by name; importing it to ask takes seconds and 200 MB."""
    places = getattr(find_spec("open_clip"), "submodule_search_locations", None) or ()
    return {file.stem: file for place in places for file in Path(place, "model_configs").glob("*.json")}


# What the towers of the original CLIP may be given: sizes, and options that change no step of the walk.
_PLAIN = {
    *("image_size", "patch_size", "layers", "width", "heads", "head_width", "mlp_ratio", "ls_init_value"),
    *("patch_dropout", "output_tokens", "act_kwargs", "norm_kwargs", "context_length", "vocab_size"),
}


def _foreign_option(config: dict[str, Any]) -> str:
    """Return the first option by which a config leaves the plain ViT CLIP, or nothing."""
    towers = {"vision_cfg": {"pool_type": "tok"}, "text_cfg": {"pool_type": "argmax"}}
    for tower, usual in towers.items():
        for key, value in config[tower].items():
            if (key not in _PLAIN and usual.get(key) != value) or (
                key == "layers" and isinstance(value, list)
            ):
                return f"{tower}.{key}"
    return "multimodal_cfg" if "multimodal_cfg" in config else ""


def _config(name: str) -> dict[str, Any]:
    """Return the architecture of backbone ``name``.

    Raises:
        WeightsError: for an unknown backbone, or one of another kind than the towers here walk.
    """
    config = _any_config(name)
    if foreign := _foreign_option(config):
        raise WeightsError(
            f"backbone '{name}' is not a plain ViT CLIP (its {foreign} is of another kind), and only those "
            "can be used: ViT-B-16, ViT-B-16-plus-240, ViT-L-14, ViT-L-14-336, ViT-H-14 and others; see: "
            "zsad weights list"
        )
    return config


def _any_config(name: str) -> dict[str, Any]:
    path = Path(name)
    return _read_config(path) if path.suffix == ".json" else _known_config(name)


@cache
def _known_config(name: str) -> dict[str, Any]:
    if (_shipped() / f"{name}.json").is_file():
        return _read_config(_shipped() / f"{name}.json")
    if name not in _published():
        raise WeightsError(f"unknown backbone '{name}'.{suggest(name, architectures())}")
    published: dict[str, Any] = json.loads(_published()[name].read_text(encoding="utf-8"))
    return published


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("model_cfg", config)
        sizes = [config["embed_dim"]]
        for tower, names in _SIZES.items():
            sizes += [config[tower][name] for name in names]
    except OSError:
        raise WeightsError(
            f"{path}: no such architecture file; give a JSON as open_clip's model_configs are"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not an open_clip architecture ({error!r}); it needs embed_dim, vision_cfg and text_cfg"
        ) from None
    for size in sizes:
        if type(size) is not int or not 0 < size <= _LARGEST_SIZE:
            raise WeightsError(f"{path}: a size of {size!r} is no whole number from 1 to {_LARGEST_SIZE}")
    return dict(config)


_SIZES = {
    "vision_cfg": ("image_size", "layers", "width", "patch_size"),
    "text_cfg": ("width", "heads", "layers"),
}
_LARGEST_SIZE = 65_536


def architecture_digest(name: str) -> str:
    """Return the digest of what the file of a backbone declares; empty for one that is known by its name.

    Raises:
        WeightsError: if the file cannot be read, or declares none.
    """
    return digest_of(_any_config(name)) if Path(name).suffix == ".json" else ""


def _shipped() -> Path:
    return Path(__file__).parent / "backbones"


def shipped_weights(name: str) -> str:
    """Return the tag of the weights that come with backbone ``name``; empty if none do."""
    return name if _shipped_file(name, name) else ""


def _shipped_file(name: str, tag: str) -> Path | None:
    path = _shipped() / f"{name}.safetensors"
    return path if tag == name and not Path(name).suffix and path.is_file() else None


def native_size(name: str) -> int:
    """Return the input side in pixels that backbone ``name`` was made for."""
    size = _config(name)["vision_cfg"]["image_size"]
    return int(size[0] if isinstance(size, list) else size)


def layers_and_patch(name: str) -> tuple[int, int]:
    """Return the number of image blocks and the patch side of backbone ``name``."""
    vision = _config(name)["vision_cfg"]
    return int(vision["layers"]), int(vision["patch_size"])


def vision_width(name: str) -> int:
    """Return the width of a backbone's image tower."""
    return int(_config(name)["vision_cfg"]["width"])


def find_weights(backbone: Backbone) -> Weights:
    """Resolve ``backbone.weights``: ``random[:SEED]``, a file, or one of open_clip's tags.

    Raises:
        WeightsError: for an unknown backbone or tag, a missing file, a tag that cannot be downloaded, or a
            file whose activation is not known.
    """
    name, tag = backbone.name, backbone.weights
    config = _config(name)
    source: Path | str
    if tag == "random" or tag.startswith("random:"):
        source, digest = _random_source(name, tag)
    else:
        source = _shipped_file(name, tag) or (weight_file(tag) if is_file(tag) else fetch(name, tag))
        digest = sha256_of(source)
    chosen = backbone.activation
    activation: Activation = _activation(name, config, tag, source) if chosen == "auto" else chosen
    return Weights(name, config, source, tag, digest, activation)


def _random_source(name: str, tag: str) -> tuple[str, str]:
    seed = tag.partition(":")[2] or "0"
    if not (seed.isascii() and seed.isdigit() and len(seed) <= _SEED_DIGITS):
        raise WeightsError(f"weights '{tag}': the seed of random weights is a whole number, as in random:3")
    return f"random:{int(seed)}", f"random/{Path(name).stem}/{int(seed)}"


def is_file(tag: str) -> bool:
    """Tell whether weights are named by a file rather than by a published tag."""
    return bool(Path(tag).suffix) or Path(tag).name != tag


def weight_file(tag: str) -> Path:
    """Return the weight file that ``tag`` names.

    Raises:
        WeightsError: if it is not there, cannot be read, or is plainly something else.
    """
    path = Path(tag).expanduser()
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{tag}: {state}; give a .safetensors or .pt file, a tag, or 'random'")
    examine(path)
    return path


def _activation(name: str, config: dict[str, Any], tag: str, source: Path | str) -> Activation:
    """Return the activation the weights were trained with; a wrong one gives no error, only bad numbers."""
    if config.get("quick_gelu"):
        return "quick_gelu"
    if isinstance(source, str) or (_shipped() / f"{name}.json").is_file():
        return "gelu"
    if not is_file(tag):
        return "quick_gelu" if entry(name, tag)["quick_gelu"] else "gelu"
    # A file does not say: OpenAI's own archives are TorchScript, else the published weights must agree.
    published = {entry(name, known)["quick_gelu"] for known in tags(name)}
    if is_torchscript(source) or published == {True}:
        return "quick_gelu"
    if len(published) == 2:
        raise WeightsError(
            f"{tag}: backbone '{name}' is published with GELU and with QuickGELU and a file does not say "
            "which; state it with --activation gelu or --activation quick_gelu (OpenAI's weights: quick_gelu)"
        )
    return "gelu"


def verify(name: str, tag: str, activation: str = "auto") -> dict[str, str]:
    """Check a weight file (tag or path) for ``name``: its SHA-256 where published, then every key and shape.

    Returns the file, its SHA-256, the published digest it was compared with, and the activation.

    Raises:
        WeightsError: if the digest or the architecture differs, or the activation is not one.
    """
    choices: tuple[Literal["auto"] | Activation, ...] = ("auto", "gelu", "quick_gelu")
    chosen = next((choice for choice in choices if choice == activation), None)
    if chosen is None:
        raise WeightsError(f"unknown activation '{activation}'.{suggest(activation, choices)}")
    weights = find_weights(Backbone(name, tag, chosen))
    published = ""
    if isinstance(weights.source, Path) and not is_file(tag):
        published = _published_digest(entry(name, tag)["url"], weights.source)
        if published and not weights.digest.startswith(published):
            raise WeightsError(
                f"{weights.source}: SHA-256 is {weights.digest}, published is {published}...; delete it "
                f"and run: zsad weights prefetch {name} {tag}"
            )
    weights.load_into(weights.outline())
    return {
        "file": str(weights.source),
        "sha256": weights.digest,
        "published": published or "none",
        "activation": weights.activation,
    }


def _published_digest(url: str, file: Path) -> str:
    # The digest in a release's URL is that of the .pt file, not of a converted copy.
    if file.suffix == ".safetensors":
        return file.resolve().name if re.fullmatch(r"[0-9a-f]{64}", file.resolve().name) else ""
    return published_digest(url)


# Buffers and sizes that published files carry beside the weights.
_SURPLUS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias"}


def _compare(wanted: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> str:
    """Return what differs between the wanted shapes and the tensors, in words; empty if nothing does."""
    held = {k: tuple(v.shape) for k, v in tensors.items() if k.rpartition(".")[2] not in _SURPLUS}
    if held.get("logit_scale") == (1,) and wanted.get("logit_scale") == ():
        tensors["logit_scale"], held["logit_scale"] = tensors["logit_scale"][0], ()
    if held == wanted:
        return ""
    parts = [
        f"{what} {_fact(held, key, axis)} in the file, {_fact(wanted, key, axis)} expected"
        for what, key, axis in _FACTS
        if _fact(held, key, axis) != _fact(wanted, key, axis)
    ]
    missing, surplus = sorted(wanted.keys() - held.keys()), sorted(held.keys() - wanted.keys())
    if missing and not parts:
        parts.append(f"{len(missing)} missing, first {missing[0]}")
    if surplus and not parts:
        parts.append(f"{len(surplus)} surplus, first {surplus[0]}")
    if not parts:
        key = next(key for key in sorted(wanted) if wanted[key] != held.get(key))
        parts.append(f"{key} is {held.get(key)} in the file, {wanted[key]} expected")
    return "; ".join(parts)


_FACTS = (
    ("image width", "visual.conv1.weight", 0),
    ("patch", "visual.conv1.weight", 2),
    ("image tokens", "visual.positional_embedding", 0),
    ("image blocks", "visual.transformer.resblocks.*.ln_1.weight", None),
    ("text width", "token_embedding.weight", 1),
    ("text blocks", "transformer.resblocks.*.ln_1.weight", None),
    ("joint width", "text_projection", 1),
)


def _fact(shapes: dict[str, tuple[int, ...]], key: str, axis: int | None) -> int:
    if axis is None:
        pattern = re.compile(re.escape(key).replace(r"\*", r"\d+"))
        return sum(1 for name in shapes if pattern.fullmatch(name))
    shape = shapes.get(key, ())
    return shape[axis] if len(shape) > axis else 0
