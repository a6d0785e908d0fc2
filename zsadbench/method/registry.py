"""From the name of a method to a method: ``clip-ad+@clean-taps``, ``mine.py:Mine``, ``package.module:Mine``.

``resolve`` lays everything that is known over the defaults of the class, weakest first: the card's
``[reference]``, the variant, the tables of the domain and of the dataset, the backbone with its table,
the user's prompts, the user's settings.  Nothing here imports torch before a method is made.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..clip import is_address
from ..errors import MethodError, UsageError, suggest
from ..inputs import second_towers
from .card import REFERENCE, WORDINGS, WORDLESS, Layer, MethodCard, method_cards
from .protocol import Relating
from .settings import convert, describe, hints, override, parameters, places
from .user import blamed, card_of, is_users, user_class

if TYPE_CHECKING:
    from .protocol import Method

__all__ = [
    "MethodCard",
    "Resolved",
    "load_method",
    "method_cards",
    "method_class",
    "override",
    "parse_spec",
    "recipe_of",
    "resolve",
    "wordings",
]


@dataclass(frozen=True)
class Resolved:
    """A method ready to run.

    ``card`` is the card as the variant and the dataset change it; ``inductive`` is the method with the
    card's inductive image score; ``parameters`` holds every field as JSON values.
    """

    card: MethodCard
    variant: str
    method: Method
    inductive: Method
    parameters: dict[str, Any]

    @property
    def id(self) -> str:
        """The method id, with ``@variant`` unless it is the reference."""
        return self.card.id if self.variant == REFERENCE else f"{self.card.id}@{self.variant}"

    @property
    def relates(self) -> bool:
        """Whether the maps of an image need the other images of its category."""
        return isinstance(self.method, Relating)

    @property
    def whole_categories(self) -> bool:
        """Whether a category is observed as one, the unit of resume."""
        return self.card.order_dependent or self.relates

    @property
    def constants_per_dataset(self) -> bool:
        """Whether the reference picks constants by the dataset's name: its card has a table that does."""
        return self.card.has_constants_per_dataset(self.variant)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the method is a trained one and has no checkpoint yet."""
        return self.card.trained and not getattr(self.method, "checkpoint", None)

    @property
    def size(self) -> int | Literal["frame"]:
        """The evaluation size of the reference protocol."""
        return self.card.protocol.size

    @property
    def mask_resize(self) -> str:
        """The mask rule of the reference protocol."""
        return self.card.protocol.mask_resize


def parse_spec(spec: str) -> tuple[MethodCard, str]:
    """Return the card and the variant that ``spec`` names ("reference" where it names none).

    Raises:
        UsageError: for an unknown method or variant, with the nearest one.
        MethodError: for a user's class that is no method.
    """
    if is_users(spec):
        return card_of(spec), REFERENCE
    name, _, variant = spec.partition("@")
    cards = method_cards()
    if name not in cards:
        raise UsageError(f"unknown method '{name}'.{suggest(name, cards)} `zsad methods` lists them all.")
    variant = variant or REFERENCE
    known = [REFERENCE, *cards[name].variants]
    if variant not in known:
        raise UsageError(f"method '{name}' has no variant '{variant}'.{suggest(variant, known)}")
    return cards[name], variant


def method_class(card: MethodCard) -> type:
    """Import and return the class of a card.

    Raises:
        MethodError: if the module or the class is missing.
    """
    if card.path.suffix != ".toml":
        return user_class(card.entry)
    return _loaded("entry", card.entry, str(card.path))


def _loaded(key: str, entry: str, where: str) -> type:
    """Return the class that ``entry`` ("module:Class") names among the methods."""
    module, _, name = entry.partition(":")
    try:
        found: type = getattr(importlib.import_module(f"zsadbench.methods.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise MethodError(f'{where}: {key} = "{entry}" cannot be loaded ({error}).') from error
    return found


def recipe_of(resolved: Resolved, dataset: str) -> Any:
    """Return how a method is trained on ``dataset`` (an id); None for a method that learns nothing.

    A class with ``recipe(dataset)`` answers for itself.  Else the card names the class of the recipe and
    what differs from its defaults; where numbers depend on the method, that class has ``of(method)``.

    Raises:
        MethodError: if the card names a recipe, or a field of one, that is not there.
    """
    method: Any = resolved.method
    if hasattr(method, "recipe"):
        with blamed(method, "recipe"):
            return method.recipe(dataset)
    training = resolved.card.training
    if training is None:
        return None
    cls: Any = _loaded("recipe", training.recipe, training.where)
    recipe = cls.of(method) if hasattr(cls, "of") else cls()
    for name in dict.fromkeys(("", dataset)):
        recipe = _amended(recipe, training.layers.get(name, Layer()))
    return recipe


def _amended(recipe: Any, layer: Layer) -> Any:
    """Return ``recipe`` with the fields of ``layer``, each of its field's type."""
    types = hints(type(recipe))
    values = {}
    for name, value in layer.fields.items():
        if name not in types:
            raise MethodError(f"{layer.where}the recipe has no field '{name}'.{suggest(name, types)}")
        try:
            values[name] = convert(value, types[name])
        except ValueError as reason:
            raise MethodError(
                f"{layer.where}{name}={value!r}: must be {describe(types[name])}.{reason}"
            ) from None
    return replace(recipe, **values)


def resolve(
    spec: str,
    *,
    dataset: str = "",
    domain: str = "",
    backbone: str | None = None,
    weights: str | None = None,
    activation: str | None = None,
    prompts: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Resolved:
    """Return the method that ``spec`` names as it runs on ``dataset`` (id) of ``domain``.

    ``backbone``, ``weights`` and ``activation`` replace the card's CLIP; ``prompts`` is a file of the
    user's own states and templates; ``settings`` maps field names to texts or values.

    Raises:
        UsageError: for an unknown name, or a value that does not fit its field.
        MethodError: for a mistake in a card, a prompt file or a user's class.
        WeightsError: for an unknown backbone, or a weight file whose normalisation is not known.
    """
    card, variant = parse_spec(spec)
    settings = _plain_settings(settings or {}, backbone)
    layers = card.layers(variant, domain, dataset)
    method = method_class(card)()
    for layer in layers:
        method = override(method, layer.fields, error=MethodError, where=layer.where)
    if backbone is not None and backbone != method.backbone.name:
        method = _on_backbone(method, card, variant, backbone, weights, settings)
    options = {"weights": weights, "activation": activation}
    if (weights or "").partition(":")[0] == "random":  # then nothing is downloaded
        options |= {f"{field}_weights": weights for field in second_towers(method)}
    method = override(method, {name: value for name, value in options.items() if value is not None})
    if prompts is not None:
        method = _with_prompts(method, prompts, spec)
    method = override(method, settings, where=f"{spec}: ")
    if "tiles" in settings and method.preprocess.tiles != "none" and not card.takes_tiles:
        raise UsageError(
            f"{spec}: tiles={settings['tiles']}: this method looks at whole images only; leave it out"
        )
    if backbone is not None or "size" in settings:
        _check_size(method)
    method = _normalised(method)
    card = card.under(layers)
    inductive = override(method, card.inductive, error=MethodError, where=f"{card.path.name} [inductive]: ")
    return Resolved(card, variant, method, inductive, parameters(method))


def load_method(
    spec: str,
    *,
    dataset: str = "",
    backbone: str | None = None,
    weights: str | None = None,
    activation: str | None = None,
    **settings: Any,
) -> Method:
    """Return a method by name, with ``settings`` for its fields: ``load_method("winclip", scales=(2, 4))``.

    Raises:
        ZsadError: as ``resolve`` does.
    """
    found = resolve(
        spec, dataset=dataset, backbone=backbone, weights=weights, activation=activation, settings=settings
    )
    return found.method


def _plain_settings(settings: Mapping[str, Any], backbone: str | None) -> dict[str, Any]:
    if "backbone" in settings:
        raise UsageError(
            f"backbone={settings['backbone']}: another backbone also changes sizes, layers and weights; "
            "choose it with --backbone NAME --weights TAG"
        )
    if is_address(given := settings.get("checkpoint", "")):
        from ..clip import checkpoint_file  # brings torch

        return {**settings, "checkpoint": str(checkpoint_file(given))}
    return dict(settings)


def _on_backbone(
    method: Any, card: MethodCard, variant: str, name: str, weights: str | None, settings: Mapping[str, Any]
) -> Any:
    """Return ``method`` on another CLIP: its native size, scaled layers and lengths, the card's table."""
    from ..clip import layers_and_patch, native_size, shipped_weights

    table = card.backbone_fields(variant, name)
    weights = weights or shipped_weights(name)
    where = f"{card.path.name} [reference.backbone.{name}]: "
    if not (weights or "weights" in settings or "weights" in table):
        raise UsageError(_without_weights(card, name, method.backbone.name))
    own = {"backbone": name, "activation": "auto", "size": native_size(name), "weights": weights or "random"}
    other = override(method, own | table, error=MethodError, where=where)
    final_size = override(other, {key: settings[key] for key in ("size",) if key in settings}).preprocess.size
    depth = (
        layers_and_patch(name)[0] / layers_and_patch(method.backbone.name)[0] if card.scaling.layers else 1.0
    )
    scaled = {field: _scale(method, field, depth, blocks=True) for field in card.scaling.layers}
    length = final_size / method.preprocess.size
    scaled |= {field: _scale(method, field, length, blocks=False) for field in card.scaling.lengths}
    kept = {field: value for field, value in scaled.items() if field not in table}
    return override(other, kept, error=MethodError, where=f"{card.path.name} [scaling]: ")


def _scale(method: Any, field: str, ratio: float, *, blocks: bool) -> Any:
    """Return a field times ``ratio``; whole numbers stay whole, blocks that fall together become one."""
    value = getattr(method, field, None)
    if isinstance(value, tuple):
        scaled = [_scale_number(number, ratio) for number in value]
        merged = blocks and len(set(scaled)) < len(set(value))
        return tuple(sorted(set(scaled))) if merged else tuple(scaled)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MethodError(
            f"[scaling] names '{field}', which is no field of numbers of {type(method).__name__}"
        )
    return _scale_number(value, ratio)


def _scale_number(number: float, ratio: float) -> float:
    if not isinstance(number, int):
        return number * ratio
    # Halves go up: Python's round would send blocks 3 and 9 of 12 in different directions.
    return max(1, math.floor(number * ratio + 0.5)) if number > 0 else number


def _without_weights(card: MethodCard, name: str, reference: str) -> str:
    import open_clip

    from ..clip import native_size

    native_size(name)  # an unknown backbone is the first thing to say
    tags = open_clip.list_pretrained_tags_by_model(name)
    choice = f"one of {', '.join(tags)}" if tags else "'random'"
    return (
        f"--backbone {name} also needs --weights (the card of {card.id} names those of {reference} only): "
        f"{choice}, or a file; see: zsad weights list"
    )


def _with_prompts(method: Any, path: Path, spec: str) -> Any:
    """Return ``method`` with the states and templates of a prompt file, in every template list it has."""
    from ..clip import read_prompts

    lists = read_prompts(path)
    known = places(method)
    missing = [name for name in lists if name not in known]
    if missing:
        raise UsageError(
            f"{path}: method '{spec}' has no list '{missing[0]}': its prompts are learned or fixed; "
            "leave --prompts out or choose another method"
        )
    special = [name for name in known if name.endswith("_templates") and "templates" in lists]
    return override(
        method, {**lists, **dict.fromkeys(special, lists.get("templates", ()))}, where=f"{path}: "
    )


def _normalised(method: Any) -> Any:
    """Return ``method`` with the mean and deviation of its weights, where it states none of its own."""
    from ..clip import normalisation

    spec = method.preprocess
    if spec.mean and spec.std:
        return method
    mean, std = normalisation(method.backbone)
    return replace(method, preprocess=replace(spec, mean=spec.mean or mean, std=spec.std or std))


def _check_size(method: Any) -> None:
    from ..clip import layers_and_patch

    size, patch = method.preprocess.size, layers_and_patch(method.backbone.name)[1]
    if size < patch or size % patch:
        low = max(patch, size // patch * patch)
        raise UsageError(
            f"size={size} does not divide into patches of {patch} pixels ({method.backbone.name}); "
            f"nearest: {low} or {low + patch}"
        )


def wordings(
    resolved: Resolved,
    categories: Mapping[str, str],
    mode: str = "method",
    words: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the words for each category in prompts.

    ``categories`` maps each category to the dataset's default words.  ``mode`` "key" takes the category
    as it is, "spaced" with spaces for underscores, "words" the default words, and "method" the method's
    own table, else the rule on its card.  ``words`` (category -> text) wins over everything.

    Raises:
        UsageError: for an unknown mode or category, or empty words.
    """
    words = words or {}
    _check_words(words, list(categories))
    modes = (*WORDINGS, "method")
    if mode not in modes:
        raise UsageError(f"--wording {mode} is not known.{suggest(mode, modes)}")
    own = resolved.card.words if mode == "method" else {}
    rule = resolved.card.wording if mode == "method" else mode
    return {
        category: words.get(category) or own.get(category) or _worded(category, default, rule)
        for category, default in categories.items()
    }


def _check_words(words: Mapping[str, str], categories: Sequence[str]) -> None:
    for category, text in words.items():
        if category not in categories:
            raise UsageError(f"--words {category}={text}: no such category.{suggest(category, categories)}")
        if not text.strip():
            raise UsageError(f"--words {category}=: the words are missing; write --words {category}=TEXT")


def _worded(category: str, default: str, rule: str) -> str:
    spaced = category.replace("_", " ").strip()
    return {"key": category, WORDLESS: category, "spaced": spaced, "words": default or spaced}[rule]
