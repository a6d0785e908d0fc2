"""Which published figures may stand beside a record, and what sets the others apart from it.

A figure stands beside a row only if it was made with the same backbone, weights, input size and parameters
on the same images.  What a source does not state is taken to be the reference of the method's card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ..cards import card_paths
from ..data import shipped_description
from ..errors import ZsadError
from ..method import MethodCard, Resolved, method_cards, resolve, wordings
from ..records import Published, Record, published_figures
from ..samples import Expect

MEAN = "mean"
"""Stands in place of a category where a row is the mean over all."""

Choice = Literal["fitting", "all", "none"]
"""Which published figures to show: those that fit a row, the others too, or none."""

BACKBONE, SETTINGS, CHECKPOINT = "other backbone", "changed settings", "own checkpoint"
INCOMPLETE, OTHER_IMAGES, FOREIGN = "incomplete set", "other images", "foreign maps"


@dataclass(frozen=True)
class Source:
    """Figures of one source that do not stand beside a row by themselves, by metric.

    ``differences`` are marks: what sets the row apart from them; empty where a more trusted figure stands.
    """

    kind: str
    about: str
    differences: tuple[str, ...]
    figures: Mapping[str, Published]


def beside(
    record: Record, category: str, metrics: Sequence[str], choice: Choice
) -> tuple[dict[str, Published], tuple[Source, ...]]:
    """Return by metric the most trusted figure that fits, and the sources of all others if asked for."""
    if choice == "none":
        return {}, ()
    fitting: dict[str, Published] = {}
    others: dict[tuple[str, str, tuple[str, ...]], dict[str, Published]] = {}
    place = (record.method_id, record.variant, record.dataset, category)
    for figure in published_figures(*place, metrics, record.legacy):
        if choice == "fitting" and figure.metric in fitting:
            continue
        differs = differences(record, figure)
        if not differs and figure.metric not in fitting:
            fitting[figure.metric] = figure
        else:
            others.setdefault((figure.kind, figure.about, differs), {}).setdefault(figure.metric, figure)
    sources = (Source(*key, figures) for key, figures in others.items())
    return fitting, tuple(sources) if choice == "all" else ()


def differences(record: Record, figure: Published) -> tuple[str, ...]:
    """Return the marks that set a record apart from what a figure was made with; empty where it fits."""
    if record.observation["method"].get("foreign"):
        return (FOREIGN,)
    card = _card(record)
    if card is None:
        return (SETTINGS,)
    marks = [BACKBONE] if _other_backbone(record, figure, card) else []
    marks += [CHECKPOINT] if card.trained and not _of_the_authors(record) else []
    images = _images(record, figure.category)
    marks += [images] if images else []
    if marks:  # only what fits so far is worth loading the method for
        return (*marks, SETTINGS) if _plainly_changed(record, figure) else tuple(marks)
    return (SETTINGS,) if _plainly_changed(record, figure) or _changed(record, figure) else ()


def shortfall(record: Record) -> str:
    """Return the mark of a record with fewer images than its dataset has, for no reason marked already."""
    told = bool(record.selection or record.failed or record.skipped)
    counted = _whole(record.dataset)[1] is not None
    return INCOMPLETE if counted and not told and _images(record, MEAN) == INCOMPLETE else ""


def _card(record: Record) -> MethodCard | None:
    """Return the card of a record's method; None for the file of a user."""
    spec = str(record.observation["method"].get("spec") or record.method)
    return method_cards().get(record.method_id) if spec == record.method else None


def _other_backbone(record: Record, figure: Published, card: MethodCard) -> bool:
    said = record.observation["backbone"] or {}
    name, _, tag = card.of(record.variant).backbone.partition("/")
    stated = figure.weights
    if figure.architecture not in ("", name):
        name, tag = figure.architecture, stated
    tag = tag if tag.startswith(stated) else stated
    return said.get("name") != name or not str(said.get("weights") or "").lower().startswith(tag)


def _of_the_authors(record: Record) -> bool:
    return bool((record.observation.get("checkpoint") or {}).get("source"))


def _images(record: Record, category: str) -> str:
    """Return the mark of a record whose images are not all of its dataset's, or more; else nothing."""
    if record.selection.get("limit"):
        return INCOMPLETE
    classes, expect = _whole(record.dataset)
    present = {name: _counts(row) for name, row in record.categories.items()}
    if category != MEAN and expect and category in expect.categories:
        pairs = [(present[category], expect.categories[category])]
    else:
        if not classes <= present.keys():
            return INCOMPLETE
        pairs = [(_sum(present), expect.total)] if expect else []
        if expect:
            pairs += [(present.get(name, (0, 0)), each) for name, each in expect.categories.items()]
    if any(have < want for found, wanted in pairs for have, want in zip(found, wanted, strict=True)):
        return INCOMPLETE
    return OTHER_IMAGES if any(found != wanted for found, wanted in pairs) else ""


def _counts(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row.get("normal") or 0), int(row.get("anomalous") or 0)


def _sum(counts: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(normal for normal, _ in counts.values()), sum(anomalous for _, anomalous in counts.values())


@cache
def _whole(dataset: str) -> tuple[frozenset[str], Expect | None]:
    """Return the categories of a dataset and its counts, as far as its description states them."""
    if dataset not in card_paths("datasets"):
        return frozenset(), None
    described = shipped_description(dataset)
    named = described.expect.categories if described.expect else {}
    return frozenset(described.classes) | frozenset(named), described.expect


def _plainly_changed(record: Record, figure: Published) -> bool:
    """Whether settings differ by what the record alone says."""
    preprocess = (record.observation["method"].get("parameters") or {}).get("preprocess") or {}
    size = preprocess.get("size")
    other_size = figure.size is not None and size is not None and size != figure.size
    return other_size or figure.retrained or bool(record.protocol.get("map_parameters"))


def _changed(record: Record, figure: Published) -> bool:
    """Whether the method ran, or was scored, otherwise than the card says for the figure's backbone."""
    own = record.observation["backbone"] or {}
    backbone = (own.get("name"), own.get("weights")) if figure.architecture else (None, None)
    try:
        wanted = _reference(record.method, record.dataset, *backbone, figure.size)
    except ZsadError:
        return True
    words = record.observation.get("wordings")
    described = shipped_description(record.dataset)
    known = {name: described.words(name) for name in record.categories}
    return (
        _differ(record.observation["method"].get("parameters") or {}, wanted.parameters)
        or bool(words and {name: words.get(name) for name in known} != wordings(wanted, known))
        or (record.protocol["id"] == "custom" and _other_rules(record.protocol, wanted))
    )


@cache
def _reference(spec: str, dataset: str, name: str | None, weights: str | None, size: int | None) -> Resolved:
    domain = shipped_description(dataset).domain
    plain = resolve(spec, dataset=dataset, domain=domain)
    if name is None or name == plain.method.backbone.name:
        name = weights = None
    settings = {} if size is None or size == plain.method.preprocess.size else {"size": size}
    return resolve(spec, dataset=dataset, domain=domain, backbone=name, weights=weights, settings=settings)


def _differ(recorded: Any, wanted: Any) -> bool:
    """Whether a parameter that both know differs; the files of checkpoints and weights are judged apart."""
    if isinstance(recorded, Mapping) and isinstance(wanted, Mapping):
        shared = (recorded.keys() & wanted.keys()) - {"checkpoint", "weights"}
        return any(_differ(recorded[name], wanted[name]) for name in shared)
    return bool(recorded != wanted)


def _other_rules(protocol: Mapping[str, Any], wanted: Resolved) -> bool:
    rules = (protocol.get("size"), protocol.get("mask_resize"))
    return rules != (wanted.size, wanted.mask_resize)
