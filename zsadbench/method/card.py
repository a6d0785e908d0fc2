"""Method cards: the parsed and checked form of a ``methods/*.toml`` file.

A card says where a method comes from, which class carries it out, what its authors' code does
differently per dataset, domain or backbone, and which deliberate variants it has.  Reading cards
imports neither torch nor the methods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ..cards import Card, card_paths
from ..errors import MethodError

MaskResize = Literal["bilinear50", "all", "any", "nearest", "native"]

MASK_RESIZES = get_args(MaskResize)
WORDINGS = ("key", "spaced", "words")
WORDLESS = "none"
"""In place of a rule of wording: the prompts of the method name no category."""
REFERENCE = "reference"

_OPTIONAL_TEXTS = ("paper", "code", "bibtex", "backbone", "miniature")
_IDENTITY = ("format", "id", "title", "version", "entry", "recipe", "paper", "code", "bibtex", "miniature")
_DISPLAYED = ("backbone", "size")  # at the top only to be listed; in every other table they are fields
_TABLES = ("reference", "scaling", "training", "variants")
_FLAGS = ("trained", "transductive", "order_dependent", "takes_tiles")
_LISTS = ("map_parameters", "deviations")
_CHANGEABLE = (*_FLAGS, *_LISTS, "evidence_per_patch", "wording", "words", "protocol", "inductive")
_OCCASIONS = ("domain", "dataset", "backbone")
_ID = re.compile(r"[a-z0-9][a-z0-9+._-]*")
_ENTRY = re.compile(r"[a-z_]\w*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class ReferenceProtocol:
    """How the authors evaluate: ``size`` in pixels, or "frame" for the network input; the mask rule."""

    size: int | Literal["frame"] = "frame"
    mask_resize: MaskResize = "bilinear50"


@dataclass(frozen=True)
class Layer:
    """What one table of a card lays over the method: ``fields`` of its class, ``keys`` of the card.

    ``occasions`` holds the tables that apply for one domain, dataset or backbone only.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    occasions: Mapping[tuple[str, str], Layer] = field(default_factory=dict)
    summary: str = ""
    where: str = ""


@dataclass(frozen=True)
class Scaling:
    """Fields that follow a backbone: block numbers (1-based) its depth, pixel lengths its input size."""

    layers: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """What a method is trained by: ``recipe`` is "module:Class", named at ``where`` (file and line).

    ``layers`` holds, by dataset id and "" for any, the fields that differ from the recipe's defaults.
    """

    recipe: str
    where: str
    layers: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodCard:
    """One method id.

    ``entry`` is "module:Class" and ``path`` the file the card was read from.  ``backbone``
    ("name/weights") and ``size`` (input pixels) repeat the class's own, to be listed without importing it.
    ``training`` is None where the card names no recipe.
    """

    id: str
    title: str
    version: int
    entry: str
    path: Path
    paper: str = ""
    code: str = ""
    bibtex: str = ""
    backbone: str = ""
    size: int = 0
    miniature: str = ""
    """The miniature CLIP its contract is tested on, where that of its patch size does not fit."""
    trained: bool = False
    transductive: bool = False
    order_dependent: bool = False
    takes_tiles: bool = False
    evidence_per_patch: int = 16
    """Numbers that the evidence of an image may hold for each patch."""
    map_parameters: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    wording: str = "words"
    words: Mapping[str, str] = field(default_factory=dict)
    protocol: ReferenceProtocol = field(default_factory=ReferenceProtocol)
    inductive: Mapping[str, Any] = field(default_factory=dict)
    scaling: Scaling = field(default_factory=Scaling)
    training: Training | None = None
    reference: Layer = field(default_factory=Layer)
    variants: Mapping[str, Layer] = field(default_factory=dict)

    def layers(self, variant: str, domain: str = "", dataset: str = "") -> list[Layer]:
        """Return the layers that apply, weakest first: reference, variant, domain, dataset."""
        base = [self.reference, *([self.variants[variant]] if variant != REFERENCE else [])]
        special = [
            layer.occasions[occasion]
            for occasion in (("domain", domain), ("dataset", dataset))
            for layer in base
            if occasion in layer.occasions
        ]
        return base + special

    def backbone_fields(self, variant: str, backbone: str) -> dict[str, Any]:
        """Return the fields that the card sets for one backbone."""
        fields: dict[str, Any] = {}
        for layer in self.layers(variant):
            if occasion := layer.occasions.get(("backbone", backbone)):
                fields |= occasion.fields
        return fields

    def has_constants_per_dataset(self, variant: str) -> bool:
        """Tell whether any dataset has fields of its own; words and the protocol are no constants."""
        occasions = [occasion for layer in self.layers(variant) for occasion in layer.occasions.items()]
        return any(kind == "dataset" and bool(layer.fields) for (kind, _), layer in occasions)

    def under(self, layers: list[Layer]) -> MethodCard:
        """Return the card as ``layers`` change it: tables are merged, everything else is replaced."""
        card = self
        for layer in layers:
            changes = dict(layer.keys)
            for name in ("words", "inductive"):
                if name in changes:
                    changes[name] = {**getattr(card, name), **changes[name]}
            if "protocol" in changes:
                changes["protocol"] = replace(card.protocol, **changes["protocol"])
            card = replace(card, **changes)
        return card

    def of(self, variant: str) -> MethodCard:
        """Return the card as ``variant`` changes it, on no particular dataset."""
        return self.under(self.layers(variant))


@cache
def method_cards() -> dict[str, MethodCard]:
    """Return every shipped method card by id, sorted; a card with a mistake is refused by name."""
    return {name: read_method_card(path) for name, path in card_paths("methods").items()}


def read_method_card(path: Path) -> MethodCard:
    """Read and check a card.

    Raises:
        MethodError: with file, line, key and what is allowed there.
    """
    card = Card.read(path, MethodError)
    data = card.data
    card.known_keys(data, (*_IDENTITY, *_DISPLAYED, *_CHANGEABLE, *_TABLES))
    if card.take(data, "format", int, None) != 1:
        card.fail("this version reads format = 1.", "format")
    identity = _identity(card, data)
    keys = _keys(card, data)
    keys["protocol"] = ReferenceProtocol(**keys.get("protocol", {}))
    variants = card.take(data, "variants", dict, {})
    return MethodCard(
        path=path,
        **identity,
        **keys,
        scaling=_scaling(card, card.take(data, "scaling", dict, {})),
        training=_training(card, data),
        reference=_layer(card, card.take(data, "reference", dict, {}), "reference"),
        variants={name: _variant(card, variants, name) for name in variants},
    )


def _identity(card: Card, data: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        **{name: card.take(data, name, str, None).strip() for name in ("id", "title", "entry")},
        **{name: card.take(data, name, str, "").strip() for name in _OPTIONAL_TEXTS},
        "size": card.take(data, "size", int, 0),
    }
    values["version"] = card.take(data, "version", int, None)
    if values["id"] != card.path.stem or not _ID.fullmatch(values["id"]):
        card.fail(f"id '{values['id']}' must be the file's name, '{card.path.stem}', in lower case.", "id")
    _check_entry(card, "entry", values["entry"], "winclip:WinClip")
    if values["code"] and not re.fullmatch(r"\S+/\S+@\S+", values["code"]):
        card.fail(
            'code must read owner/repository@commit, or be "" where the authors published none.', "code"
        )
    if values["version"] < 1:
        card.fail("version must be 1 or more.", "version")
    return values


def _check_entry(card: Card, name: str, value: str, example: str) -> None:
    if not _ENTRY.fullmatch(value):
        card.fail(f"{name} '{value}' must read module:Class, as in \"{example}\".", name)


def _keys(card: Card, table: Mapping[str, Any], *place: str) -> dict[str, Any]:
    """Return the checked keys of ``table`` that belong to the card, not to the method's class."""
    keys: dict[str, Any] = {
        name: card.take(table, name, bool, None, *place) for name in _FLAGS if name in table
    }
    keys |= {name: _texts(card, table, name, *place) for name in _LISTS if name in table}
    if "evidence_per_patch" in table:
        keys["evidence_per_patch"] = card.take(table, "evidence_per_patch", int, None, *place)
        if keys["evidence_per_patch"] < 1:
            card.fail("evidence_per_patch must be 1 or more numbers.", *place, "evidence_per_patch")
    if "wording" in table:
        keys["wording"] = _one_of(card, table, "wording", (*WORDINGS, WORDLESS), *place)
    if "words" in table:
        keys["words"] = card.take(table, "words", dict, None, *place)
        for category in keys["words"]:
            card.take(keys["words"], category, str, None, *place, "words")
    if "protocol" in table:
        keys["protocol"] = _protocol(
            card, card.take(table, "protocol", dict, None, *place), *place, "protocol"
        )
    if "inductive" in table:
        keys["inductive"] = card.take(table, "inductive", dict, None, *place)
    return keys


def _protocol(card: Card, table: Mapping[str, Any], *place: str) -> dict[str, Any]:
    card.known_keys(table, ("size", "mask_resize"), *place)
    size = table.get("size", "frame")
    if size != "frame" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        card.fail(
            f'size must be "frame" (the network input) or a number of pixels, not {size!r}.', *place, "size"
        )
    if "mask_resize" in table:
        _one_of(card, table, "mask_resize", MASK_RESIZES, *place)
    return dict(table)


def _one_of(card: Card, table: Mapping[str, Any], name: str, allowed: tuple[str, ...], *place: str) -> str:
    value = card.take(table, name, str, None, *place)
    if value not in allowed:
        card.fail(f"{name} = '{value}' is not known; allowed: {', '.join(allowed)}.", *place, name)
    return value


def _texts(card: Card, table: Mapping[str, Any], name: str, *place: str) -> tuple[str, ...]:
    values = card.take(table, name, list, [], *place)
    if not all(isinstance(value, str) for value in values):
        card.fail(f"'{name}' must be a list of texts.", *place, name)
    return tuple(values)


def _scaling(card: Card, table: Mapping[str, Any]) -> Scaling:
    card.known_keys(table, ("layers", "lengths"), "scaling")
    return Scaling(_texts(card, table, "layers", "scaling"), _texts(card, table, "lengths", "scaling"))


def _training(card: Card, data: Mapping[str, Any]) -> Training | None:
    """Return what the card says of the training.  The recipe and its fields are checked when it is loaded."""
    if "recipe" not in data:
        if "training" in data:
            card.fail(
                "[training] changes fields of a recipe; name it at the top: recipe = module:Class.",
                "training",
            )
        return None
    recipe = card.take(data, "recipe", str, None).strip()
    _check_entry(card, "recipe", recipe, "_training_aa_clip:AdapterRecipe")
    general = dict(card.take(data, "training", dict, {}))
    datasets = card.take(general, "dataset", dict, {}, "training")
    general.pop("dataset", None)
    layers = {"": Layer(general, where=f"{card.path.name} [training]: ")}
    for name in datasets:
        fields = card.take(datasets, name, dict, None, "training", "dataset")
        layers[name] = Layer(fields, where=f"{card.path.name} [training.dataset.{name}]: ")
    return Training(recipe, f"{card.path}:{card.line('recipe')}", layers)


def _variant(card: Card, variants: Mapping[str, Any], name: str) -> Layer:
    if name == REFERENCE or not _ID.fullmatch(name):
        card.fail(
            f"'{name}' cannot name a variant; use lower-case letters, digits, + . _ -", "variants", name
        )
    table = card.take(variants, name, dict, None, "variants")
    card.take(table, "summary", str, None, "variants", name)
    return _layer(card, table, "variants", name)


def _layer(card: Card, table: Mapping[str, Any], *place: str) -> Layer:
    """Return the layer of a table.  Field names are checked when the method is made: that needs its class."""
    # Inside an occasion there are no further ones: there the names mean fields.
    kinds = [kind for kind in _OCCASIONS if len(place) < 3 and isinstance(table.get(kind), dict)]
    occasions = {}
    for kind in kinds:
        for name in table[kind]:
            special = card.take(table[kind], name, dict, None, *place, kind)
            occasions[kind, name] = _layer(card, special, *place, kind, name)
    used = {*_CHANGEABLE, "summary", *kinds}
    for name in (*_IDENTITY, *_TABLES):
        if name in table:
            card.fail(f"'{name}' belongs to the top of the card and cannot be changed here.", *place, name)
    return Layer(
        fields={name: value for name, value in table.items() if name not in used},
        keys=_keys(card, table, *place),
        occasions=occasions,
        summary=card.take(table, "summary", str, "", *place).strip(),
        where=f"{card.path.name} [{'.'.join(place)}]: ",
    )
